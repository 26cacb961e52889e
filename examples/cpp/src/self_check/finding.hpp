// One result of a self-check, and how it is shown.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "manifest.hpp"

constexpr const char* kTexts = "texts";        // the golden texts: answers to their ids
constexpr const char* kBatches = "batches";    // the golden batches
constexpr const char* kParts = "parts";        // golden parts of an adapter in a graph
constexpr const char* kRecorded = "recorded";  // recorded runs in a graph, bit for bit

// A fault of an adapter as which outputs move.
struct ShownFault {
  std::string name;   // such as `layers.5.ffn off`
  std::string fault;  // how much of it shows, such as `1.02 of ±0.0681`
};

struct Finding {
  std::string variant;     // `slots` (native adapters), `slots, fed`, `inputs`, `bank`, `fanout`, `baked`, or one of the above
  Choice adapter;          // none: the base
  bool mixed;              // rows of one request through different adapters
  double worst;            // the largest deviation as a part of the allowed one; at most 1 is good
  std::string graph = {};               // of kParts and kRecorded: the graph, by one of these variants
  std::vector<ShownFault> faults = {};  // of kParts: those beyond their limits, the most similar first
  std::string reason = {};              // of kRecorded: why runs were not compared; empty if they were

  bool is_good() const { return worst <= 1; }  // NaN is not
};

// Findings as `verify --json` prints them.
nlohmann::ordered_json document(const std::vector<Finding>& findings);

// A finding as `verify` prints it, a line.
std::string line_of(const Finding& finding);

// Throws Fault if there are none, or one is wrong. It names golden vectors, texts and batches first, then golden parts,
// then recorded runs.
void check(const std::vector<Finding>& findings);
