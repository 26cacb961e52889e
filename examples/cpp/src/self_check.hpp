// The bundle held against its golden vectors, in every way that this machine can run it, and against its golden texts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "switchboard.hpp"

constexpr const char* kTexts = "texts";  // the golden texts: answers to their ids, in the first flavour that there is

struct Finding {
  std::string flavour;  // `slots` (native adapters), `slots, fed`, `inputs`, `bank`, `fanout`, `baked`, or kTexts
  Choice adapter;       // none: the base
  bool mixed;           // rows of one batch through different adapters
  double worst;         // the largest deviation as a part of the allowed one; at most 1 is good
};

std::vector<Finding> self_check(const Bundle& bundle);

// Findings as `verify --json` prints them.
nlohmann::ordered_json document(const std::vector<Finding>& findings);

// Throws Fault if there are none, or one is wrong.
void check(const std::vector<Finding>& findings);
