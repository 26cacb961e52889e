// The bundle compared with its golden vectors, in every way that this machine can run it, and with its golden texts and
// golden batches, by the way that users' rows take.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine.hpp"

constexpr const char* kTexts = "texts";      // the golden texts: answers to their ids
constexpr const char* kBatches = "batches";  // the golden batches

struct Finding {
  std::string flavour;  // `slots` (native adapters), `slots, fed`, `inputs`, `bank`, `fanout`, `baked`, kTexts or kBatches
  Choice adapter;       // none: the base
  bool mixed;           // rows of one request through different adapters
  double worst;         // the largest deviation as a part of the allowed one; at most 1 is good
};

std::vector<Finding> self_check(const Bundle& bundle, const Engine& engine);

// Findings as `verify --json` prints them.
nlohmann::ordered_json document(const std::vector<Finding>& findings);

// Throws Fault if there are none, or one is wrong.
void check(const std::vector<Finding>& findings);
