#include "finding.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "fault.hpp"

namespace {

// `tone in bank`, `base`, `mixed batch`
std::string subject_of(const Finding& finding) {
  const auto who = finding.mixed ? "mixed batch" : finding.adapter.value_or("base");
  return finding.graph.empty() ? who : who + " in " + finding.graph;
}

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  return text.data();
}

std::string outcome_of(const Finding& finding) {
  if (!finding.reason.empty()) return "not compared: " + finding.reason;
  if (finding.variant == kRecorded) return finding.is_good() ? "bit for bit as recorded" : "other bits than recorded";
  const auto share = formatted("%6.1f %% of what is allowed", 100 * finding.worst);
  return finding.faults.empty() ? share : share + ", as with `" + finding.faults.front().name + "`";
}

Facts facts_of(const Finding& finding) {
  const auto where = "adapter `" + finding.adapter.value_or("base") + "`";
  if (finding.variant == kParts) {
    const auto& [name, fault] = finding.faults.front();
    return {"golden parts differ: it is applied in part, or wrongly", where,
            "outputs that move as with `" + name + "` in `" + finding.graph + "`, " + fault, "outputs that do not",
            "take the bundle from its source again"};
  }
  if (finding.variant == kRecorded) {
    return {"bits differ from the build's, although the base's are equal: a tensor did not arrive as it was, or "
            "this runtime rounds otherwise", where, "another sha256 of its outputs in `" + finding.graph + "`",
            "that of the recorded runs", "take the bundle from its source again"};
  }
  return {"this machine does not compute what the reference computed"};
}

}  // namespace

nlohmann::ordered_json document(const std::vector<Finding>& findings) {
  auto found = nlohmann::ordered_json::array();
  for (const auto& finding : findings) {
    nlohmann::ordered_json entry = {
        {"variant", finding.variant}, {"adapter", nullptr}, {"mixed", finding.mixed}, {"worst", finding.worst}};
    if (finding.adapter) entry["adapter"] = *finding.adapter;
    if (finding.variant == kTexts) entry["tokenized"] = false;
    if (!finding.graph.empty()) entry["graph"] = finding.graph;
    for (const auto& [name, fault] : finding.faults) entry["faults"].push_back({{"name", name}, {"fault", fault}});
    if (finding.variant == kRecorded) entry["compared"] = finding.reason.empty();
    if (!finding.reason.empty()) entry["reason"] = finding.reason;
    found.push_back(entry);
  }
  return found;
}

std::string line_of(const Finding& finding) {
  const auto column = [](std::string text, std::size_t width) {
    text.resize(std::max(width, text.size()), ' ');
    return text + " ";
  };
  return column(finding.variant, 12) + column(subject_of(finding), 20) + outcome_of(finding);
}

void check(const std::vector<Finding>& findings) {
  if (findings.empty()) throw Fault({"holds no graph that this client can run"});
  const auto rank = [](const Finding& finding) { return finding.variant == kRecorded ? 2 : finding.variant == kParts ? 1 : 0; };
  for (const int each : {0, 1, 2}) {
    for (const auto& finding : findings) {
      if (rank(finding) == each && !finding.is_good()) throw Fault(facts_of(finding));
    }
  }
}
