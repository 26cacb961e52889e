// Golden vectors: outputs of a graph compared with those of the reference, number by number.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bundle.hpp"

using Run = std::function<Arrays(const Arrays& inputs, const Choice& adapter)>;
using RunRows = std::function<Arrays(const Arrays& inputs, const std::vector<Choice>& rows)>;

// A graph, and how all rows of a call run through one adapter in it.
struct GraphRun {
  std::string title;             // as findings call it, such as `slots, fed`
  std::string variant;           // as the manifest calls it
  std::vector<Choice> adapters;  // those that it can run
  Run run;
};

// A safetensors file of cases: their inputs, and what the reference gives for them.
class GoldenFile {
 public:
  // Throws Fault if it cannot be read.
  GoldenFile(const Bundle& bundle, const std::string& path);

  // Throw Fault if a tensor is missing, or is none that the manifest describes. An output may be a sketch.
  Arrays inputs(const std::string& name) const;
  const Array& output(const std::string& name, const std::string& output) const;

  // The outputs of a graph in the form in which the file has them: sketches of some.
  Arrays comparable(Arrays outputs) const;

  // Null if there is none.
  const Array* find(const std::string& tensor) const;

 private:
  const Array& tensor(const std::string& name) const;

  std::string path_;
  Arrays tensors_;
  const Manifest& manifest_;
};

// The golden vectors of the base or of one adapter.
struct Golden : GoldenFile {
  Golden(const Bundle& bundle, const Choice& adapter)
      : GoldenFile(bundle, bundle.manifest().golden_of(adapter).path), record(bundle.manifest().golden_of(adapter)) {}

  const GoldenRecord& record;
};

// An output without the classes of a bank behind those of the adapter, which are as many as are expected.
// Empty if type or shape do not fit.
Array own_part(const Array& found, const Array& expected);

// The largest deviation of an adapter, or of the base, as a part of the allowed one; NaN is infinitely far away.
double worst_of(const Golden& golden, const Choice& adapter, const Run& run);

// The same in graphs whose rows choose adapters. Row r of each batch runs through adapter r, beginning anew when they are
// used up, until each had a turn. Classes that an adapter lacks must be masked.
double worst_of_all_rows(const std::vector<const Golden*>& goldens, const std::vector<Choice>& adapters, const RunRows& run);
