// Recorded runs: what the same ONNX Runtime gave when the bundle was built, compared bit for bit.
#pragma once

#include <set>

#include "finding.hpp"
#include "golden_vectors.hpp"

class RecordedComparison {
 public:
  explicit RecordedComparison(const Bundle& bundle);

  // A finding for the base and for each adapter of a graph where the base has the recorded bits, else one that says why
  // they are not compared. Graphs in which an adapter is constant come last: what the base gave before decides.
  std::vector<Finding> compare(const GraphRun& graph);

 private:
  std::string distrust(const GraphRun& graph);
  std::string digest(const GraphRun& graph, const Choice& adapter) const;

  Bundle bundle_;
  std::string other_runtime_;        // why digests mean nothing here
  std::set<std::string> witnesses_;  // the variants in which the base has the recorded bits
};
