// What went wrong, in five facts: what, where, what was found, what was expected, and what to do next.
#pragma once

#include <stdexcept>
#include <string>

struct Facts {
  std::string what;
  std::string where = {};
  std::string found = {};
  std::string expected = {};
  std::string fix = {};
};

class Fault : public std::runtime_error {
 public:
  explicit Fault(const Facts& facts);

  const Facts& facts() const { return facts_; }

 private:
  Facts facts_;
};

// A request that cannot be served; the bundle is sound, and the next request may succeed.
class RequestFault : public Fault {
  using Fault::Fault;
};

// Do what one of several rows needs; its faults name the row.
template <typename Work>
auto within_row(std::size_t row, std::size_t rows, Work work) {
  try {
    return work();
  } catch (const RequestFault& fault) {
    if (rows == 1) throw;
    auto facts = fault.facts();
    facts.where = "row " + std::to_string(row) + (facts.where.empty() ? "" : ", ") + facts.where;
    throw RequestFault(facts);
  }
}
