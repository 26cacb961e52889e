#include "fault.hpp"

#include <cctype>

namespace {

std::string sentence(const Facts& facts) {
  std::string text = facts.where.empty() ? facts.what : facts.where + ": " + facts.what;
  if (!facts.found.empty()) text += "; found " + facts.found;
  if (!facts.expected.empty()) text += "; expected " + facts.expected;
  text += ".";
  if (!facts.fix.empty()) {
    std::string fix = facts.fix;
    fix[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(fix[0])));
    text += " " + fix + ".";
  }
  return text;
}

}  // namespace

Fault::Fault(const Facts& facts) : std::runtime_error(sentence(facts)), facts_(facts) {}
