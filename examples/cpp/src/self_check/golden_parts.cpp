#include "golden_parts.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <map>
#include <sstream>

#include "fault.hpp"

namespace {

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

// Σ weight · (found − expected); NaN if they do not fit.
double projection(const Array& found, const Array& expected, const Array& weight) {
  const auto own = own_part(found, expected);
  if (own.dtype != "float32") return kNoNumber;
  const auto* weights = weight.data<std::int8_t>();
  const auto *numbers = own.data<float>(), *wanted = expected.data<float>();
  double sum = 0;
  for (std::size_t at = 0; at < expected.count(); ++at) {
    sum += weights[at] * (static_cast<double>(numbers[at]) - static_cast<double>(wanted[at]));
  }
  return sum;
}

// The value of each part: 0 but for rounding in a right graph, near 1 with the fault.
std::vector<double> part_values(const PartsRecord& record, const GoldenFile& file, const Choice& adapter, const Run& run) {
  std::vector<double> sums(record.parts.size());
  std::vector<bool> has_weights(record.parts.size());
  for (const auto& name : record.cases) {
    const auto outputs = file.comparable(run(file.inputs(name), adapter));
    for (std::size_t at = 0; at < record.parts.size(); ++at) {
      const auto key = name + ".part." + std::to_string(at);
      const auto* weight = file.find(key);
      if (weight == nullptr) continue;
      const auto& output = record.parts[at].output;
      const auto& expected = file.output(name, output);
      if (weight->dtype != "int8" || weight->shape != expected.shape) {
        throw Fault({"is not int8 of the shape of its output", record.path, "`" + key + "`"});
      }
      const auto found = outputs.find(output);
      sums[at] += found == outputs.end() ? kNoNumber : projection(found->second, expected, *weight);
      has_weights[at] = true;
    }
  }
  for (std::size_t at = 0; at < sums.size(); ++at) {
    if (!has_weights[at]) throw Fault({"has no weights of part " + std::to_string(at), record.path});
    sums[at] *= record.parts[at].factor;
  }
  return sums;
}

double ratio_of(double value, double limit) {
  if (std::isnan(value)) return std::numeric_limits<double>::infinity();
  if (value == 0) return 0;
  return std::abs(value) / limit;
}

std::string number_text(double number) {
  std::ostringstream text;
  text << std::setprecision(3) << number;
  return text.str();
}

}  // namespace

std::vector<Finding> check_parts(const Bundle& bundle, const GraphRun& graph) {
  std::vector<Finding> findings;
  for (const auto& adapter : graph.adapters) {
    const auto& record = bundle.manifest().golden_of(adapter).parts;
    if (!record) continue;
    const auto values = part_values(*record, GoldenFile(bundle, record->path), adapter, graph.run);
    Finding found{kParts, adapter, false, 0, graph.title};
    std::multimap<double, ShownFault> faults;
    for (std::size_t at = 0; at < values.size(); ++at) {
      const auto& part = record->parts[at];
      const double ratio = ratio_of(values[at], part.limit);
      found.worst = std::max(found.worst, ratio);
      if (ratio <= 1) continue;
      // one fault also moves outputs a little as others do; the value of its own part is the one near 1
      const double distance = std::isnan(values[at]) ? ratio : std::abs(values[at] - 1);
      faults.emplace(distance, ShownFault{part.fault, number_text(values[at]) + " of ±" + number_text(part.limit)});
    }
    for (auto& [_, fault] : faults) found.faults.push_back(std::move(fault));
    findings.push_back(std::move(found));
  }
  return findings;
}
