#include "self_check.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "fault.hpp"

namespace {

constexpr double kUnequal = std::numeric_limits<double>::infinity();
constexpr float kMasked = -1e30F;  // the logits of classes that an adapter of a bank does not have are below

using Run = std::function<Arrays(const Arrays& inputs)>;

// The golden vectors of the base or of one adapter.
struct Golden {
  const GoldenRecord& record;
  Arrays tensors;

  Arrays inputs(const std::string& name, const Manifest& manifest) const {
    Arrays found;
    for (const auto& input : manifest.inputs) found.emplace(input.name, tensors.at(name + ".input." + input.name));
    return found;
  }
  const Array& output(const std::string& name, const std::string& output) const {
    return tensors.at(name + ".output." + output);
  }
};

Golden golden_of(const Bundle& bundle, const Choice& adapter) {
  const auto& record = bundle.manifest().golden_of(adapter);
  return {record, bundle.tensors(record.path)};
}

// The largest deviation of `count` numbers as a part of the allowed one; NaN is infinitely far away.
double deviation(const float* found, const float* expected, std::size_t count, double allowed) {
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double difference = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
    worst = std::isnan(difference) ? kUnequal : std::max(worst, difference);
  }
  if (allowed > 0) return worst / allowed;
  return worst == 0 ? 0 : kUnequal;
}

double worst_of(const Manifest& manifest, const Golden& golden, const Run& run) {
  double worst = 0;
  for (const auto& name : golden.record.cases) {
    const auto outputs = run(golden.inputs(name, manifest));
    for (const auto& [output, allowed] : golden.record.absolute) {
      const auto& expected = golden.output(name, output);
      const auto& found = outputs.at(output);
      const bool alike = found.shape == expected.shape && found.dtype == "float32" && expected.dtype == "float32";
      worst = alike ? std::max(worst, deviation(found.data<float>(), expected.data<float>(), expected.count(), allowed))
                    : kUnequal;
      if (worst == kUnequal) return worst;
    }
  }
  return worst;
}

// One row of an output of a bank against the same row of an adapter's golden output. Along the last axis the bank may
// have more classes than the adapter; those must be masked.
double row_deviation(const Array& found, const Array& expected, std::size_t row, double allowed) {
  const auto wide = static_cast<std::size_t>(found.shape.back()), own = static_cast<std::size_t>(expected.shape.back());
  const std::size_t lines = expected.count() / static_cast<std::size_t>(expected.shape.front()) / own;
  if (found.shape.front() != expected.shape.front() || found.count() * own != expected.count() * wide || wide < own) {
    return kUnequal;
  }
  double worst = 0;
  for (std::size_t line = row * lines; line < (row + 1) * lines; ++line) {
    const float* numbers = found.data<float>() + line * wide;
    worst = std::max(worst, deviation(numbers, expected.data<float>() + line * own, own, allowed));
    if (!std::all_of(numbers + own, numbers + wide, [](float number) { return number < kMasked; })) return kUnequal;
  }
  return worst;
}

// Run every case with row r of the batch through subject r of `subjects`, beginning anew when they are used up.
double worst_of_bank(const Bundle& bundle, const Bank& bank, const std::vector<Choice>& subjects) {
  std::vector<Golden> goldens;
  for (const auto& subject : subjects) goldens.push_back(golden_of(bundle, subject));
  double worst = 0;
  for (const auto& name : goldens.front().record.cases) {  // the cases of all adapters have the same inputs
    const auto inputs = goldens.front().inputs(name, bundle.manifest());
    const auto batch = static_cast<std::size_t>(inputs.begin()->second.shape.front());
    std::vector<Choice> rows;
    for (std::size_t row = 0; row < batch; ++row) rows.push_back(subjects[row % subjects.size()]);
    const auto outputs = bank.run(inputs, rows);
    for (std::size_t row = 0; row < batch; ++row) {
      const auto& golden = goldens[row % goldens.size()];
      for (const auto& [output, allowed] : golden.record.absolute) {
        worst = std::max(worst, row_deviation(outputs.at(output), golden.output(name, output), row, allowed));
      }
    }
  }
  return worst;
}

void check_switchboard(const Bundle& bundle, const std::vector<Choice>& subjects, const std::string& flavour,
                       Feeding feeding, const std::string& title, std::vector<Finding>& findings) {
  const Switchboard switchboard(bundle, flavour, feeding);
  for (const auto& subject : subjects) {
    const Run run = [&](const Arrays& inputs) { return switchboard.run(inputs, subject); };
    findings.push_back({title, subject, false, worst_of(bundle.manifest(), golden_of(bundle, subject), run)});
  }
}

void check_bank(const Bundle& bundle, const std::vector<Choice>& subjects, std::vector<Finding>& findings) {
  const Bank bank(bundle);
  for (const auto& subject : subjects) findings.push_back({"bank", subject, false, worst_of_bank(bundle, bank, {subject})});
  if (bundle.manifest().batch_invariant) {
    findings.push_back({"bank", std::nullopt, true, worst_of_bank(bundle, bank, subjects)});
  }
}

}  // namespace

std::vector<Finding> self_check(const Bundle& bundle) {
  const auto& manifest = bundle.manifest();
  std::vector<Choice> subjects{std::nullopt};
  for (const auto& record : manifest.adapters) subjects.emplace_back(record.name);
  std::vector<Finding> findings;
  if (manifest.graphs.count("slots")) {
    check_switchboard(bundle, subjects, "slots", Feeding::native, "slots", findings);
    check_switchboard(bundle, subjects, "slots", Feeding::plain, "slots, fed", findings);
  }
  if (manifest.graphs.count("inputs")) {
    check_switchboard(bundle, subjects, "inputs", Feeding::plain, "inputs", findings);
  }
  if (manifest.graphs.count("bank")) check_bank(bundle, subjects, findings);
  for (const auto& record : manifest.adapters) {
    if (record.baked.empty()) continue;
    const Baked baked(bundle, record.name);
    const Run run = [&baked](const Arrays& inputs) { return baked.run(inputs); };
    findings.push_back({"baked", record.name, false, worst_of(manifest, golden_of(bundle, record.name), run)});
  }
  return findings;
}
