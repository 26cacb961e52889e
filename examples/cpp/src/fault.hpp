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
};

// A request that cannot be served; the bundle is sound, and the next request may succeed.
class RequestFault : public Fault {
  using Fault::Fault;
};
