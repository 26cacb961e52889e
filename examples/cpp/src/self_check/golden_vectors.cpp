#include "golden_vectors.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "fault.hpp"
#include "sketch.hpp"
#include "switchboard.hpp"

namespace {

constexpr double kDiffers = std::numeric_limits<double>::infinity();

// The largest deviation of `count` numbers as a part of the allowed one; NaN is infinitely far away.
double deviation(const float* found, const float* expected, std::size_t count, double allowed) {
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double difference = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
    worst = std::isnan(difference) ? kDiffers : std::max(worst, difference);
  }
  if (allowed > 0) return worst / allowed;
  return worst == 0 ? 0 : kDiffers;
}

// One row of an output of a bank against the same row of an adapter's golden output. Along the last axis the bank may
// have more classes than the adapter; those must be masked.
double row_deviation(const Array& found, const Array& expected, std::size_t row, double allowed) {
  const auto wide = static_cast<std::size_t>(found.shape.back()), own = static_cast<std::size_t>(expected.shape.back());
  const std::size_t lines = expected.count() / static_cast<std::size_t>(expected.shape.front()) / own;
  if (found.shape.front() != expected.shape.front() || found.count() * own != expected.count() * wide || wide < own) {
    return kDiffers;
  }
  double worst = 0;
  for (std::size_t line = row * lines; line < (row + 1) * lines; ++line) {
    const float* numbers = found.data<float>() + line * wide;
    worst = std::max(worst, deviation(numbers, expected.data<float>() + line * own, own, allowed));
    if (!std::all_of(numbers + own, numbers + wide, [](float number) { return number < kMasked; })) return kDiffers;
  }
  return worst;
}

// Run a case with row r of the batch through subject `first` + r of the subjects, beginning anew when they are used up.
double worst_of_rows(const std::vector<const Golden*>& goldens, const std::vector<Choice>& subjects, std::size_t first,
                     const std::string& name, const RunRows& run) {
  const auto inputs = goldens.front()->inputs(name);  // the cases of all adapters have the same inputs
  const auto batch = static_cast<std::size_t>(inputs.begin()->second.shape.front());
  std::vector<Choice> rows;
  for (std::size_t row = 0; row < batch; ++row) rows.push_back(subjects[(first + row) % subjects.size()]);
  const auto outputs = goldens.front()->comparable(run(inputs, rows));
  double worst = 0;
  for (std::size_t row = 0; row < batch; ++row) {
    const auto& golden = *goldens[(first + row) % goldens.size()];
    for (const auto& [output, allowed] : golden.record.absolute) {
      worst = std::max(worst, row_deviation(outputs.at(output), golden.output(name, output), row, allowed));
    }
  }
  return worst;
}

}  // namespace

GoldenFile::GoldenFile(const Bundle& bundle, const std::string& path)
    : path_(path), tensors_(bundle.tensors(path)), manifest_(bundle.manifest()) {}

Arrays GoldenFile::inputs(const std::string& name) const {
  Arrays found;
  for (const auto& input : manifest_.inputs) {
    const auto key = name + ".fill." + input.name;
    const auto* fill = find(key);
    found.emplace(input.name, fill ? filled(*fill, input, path_ + ", `" + key + "`") : tensor(name + ".input." + input.name));
  }
  return found;
}

const Array& GoldenFile::output(const std::string& name, const std::string& output) const {
  const auto key = name + ".output." + output;
  const auto& expected = tensor(key);
  const auto sketched = manifest_.sketches.find(output);
  if (sketched == manifest_.sketches.end()) return expected;
  const auto& record = sketched->second;
  const bool fits = expected.shape.size() == record.axes + 1 && expected.shape.back() == static_cast<std::int64_t>(record.size());
  if (expected.dtype == "float32" && fits) return expected;
  throw Fault({"is not the sketch that the manifest describes", path_ + ", `" + key + "`", expected.dtype + " " + to_text(expected.shape),
               "float32 with " + std::to_string(record.size()) + " numbers behind " + std::to_string(record.axes) + " axes"});
}

Arrays GoldenFile::comparable(Arrays outputs) const {
  for (const auto& [name, record] : manifest_.sketches) {
    const auto output = outputs.find(name);
    if (output != outputs.end()) output->second = sketch(output->second, record, name);
  }
  return outputs;
}

const Array* GoldenFile::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const Array& GoldenFile::tensor(const std::string& name) const {
  const auto* found = find(name);
  if (found == nullptr) throw Fault({"has no tensor `" + name + "`", path_});
  return *found;
}

Array own_part(const Array& found, const Array& expected) {
  if (found.dtype != expected.dtype || found.shape.size() != expected.shape.size()) return {};
  if (found.shape == expected.shape) return found;
  if (found.shape.back() < expected.shape.back()) return {};
  std::vector<std::size_t> classes(static_cast<std::size_t>(expected.shape.back()));
  std::iota(classes.begin(), classes.end(), std::size_t{0});
  auto own = taken(found, found.shape.size() - 1, classes);
  return own.shape == expected.shape ? own : Array{};
}

double worst_of(const Golden& golden, const Choice& adapter, const Run& run) {
  double worst = 0;
  for (const auto& name : golden.record.cases) {
    const auto outputs = golden.comparable(run(golden.inputs(name), adapter));
    for (const auto& [output, allowed] : golden.record.absolute) {
      const auto& expected = golden.output(name, output);
      const auto& found = outputs.at(output);
      const bool alike = found.shape == expected.shape && found.dtype == "float32" && expected.dtype == "float32";
      worst = std::max(worst, alike ? deviation(found.data<float>(), expected.data<float>(), expected.count(), allowed)
                                    : kDiffers);
    }
  }
  return worst;
}

double worst_of_all_rows(const std::vector<const Golden*>& goldens, const std::vector<Choice>& adapters, const RunRows& run) {
  double worst = 0;
  for (const auto& name : goldens.front()->record.cases) {
    const auto batch = static_cast<std::size_t>(goldens.front()->inputs(name).begin()->second.shape.front());
    for (std::size_t first = 0; first < adapters.size(); first += batch) {  // so that everyone has a turn
      worst = std::max(worst, worst_of_rows(goldens, adapters, first, name, run));
    }
  }
  return worst;
}
