#include "self_check.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "fault.hpp"
#include "golden_batches.hpp"
#include "golden_texts.hpp"

namespace {

constexpr double kDiffers = std::numeric_limits<double>::infinity();

using Run = std::function<Arrays(const Arrays& inputs)>;
using RunRows = std::function<Arrays(const Arrays& inputs, const std::vector<Choice>& rows)>;

// The golden vectors of the base or of one adapter.
class Golden {
 public:
  Golden(const Bundle& bundle, const Choice& adapter)
      : record(bundle.manifest().golden_of(adapter)), tensors_(bundle.tensors(record.path)) {
    for (const auto& input : bundle.manifest().inputs) inputs_.push_back(input.name);
  }

  Arrays inputs(const std::string& name) const {
    Arrays found;
    for (const auto& input : inputs_) found.emplace(input, tensor(name + ".input." + input));
    return found;
  }
  const Array& output(const std::string& name, const std::string& output) const {
    return tensor(name + ".output." + output);
  }

  const GoldenRecord& record;

 private:
  const Array& tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Fault({"has no tensor `" + name + "`", record.path});
    return found->second;
  }

  Arrays tensors_;
  std::vector<std::string> inputs_;
};

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

double worst_of(const Golden& golden, const Run& run) {
  double worst = 0;
  for (const auto& name : golden.record.cases) {
    const auto outputs = run(golden.inputs(name));
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
  const auto outputs = run(inputs, rows);
  double worst = 0;
  for (std::size_t row = 0; row < batch; ++row) {
    const auto& golden = *goldens[(first + row) % goldens.size()];
    for (const auto& [output, allowed] : golden.record.absolute) {
      worst = std::max(worst, row_deviation(outputs.at(output), golden.output(name, output), row, allowed));
    }
  }
  return worst;
}

double worst_of_all_rows(const std::vector<const Golden*>& goldens, const std::vector<Choice>& subjects, const RunRows& run) {
  double worst = 0;
  for (const auto& name : goldens.front()->record.cases) {
    const auto batch = static_cast<std::size_t>(goldens.front()->inputs(name).begin()->second.shape.front());
    for (std::size_t first = 0; first < subjects.size(); first += batch) {  // so that everyone has a turn
      worst = std::max(worst, worst_of_rows(goldens, subjects, first, name, run));
    }
  }
  return worst;
}

void check_switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, const std::string& title,
                       std::vector<Finding>& findings) {
  const Switchboard switchboard(bundle, flavour);
  const LoadedAdapters adapters(bundle, feeding);
  std::vector<Choice> subjects{std::nullopt};
  for (const auto& record : bundle.manifest().adapters) subjects.emplace_back(record.name);
  for (const auto& subject : subjects) {
    const Run run = [&](const Arrays& inputs) { return switchboard.run(inputs, adapters.find(subject)); };
    findings.push_back({title, subject, false, worst_of(Golden(bundle, subject), run)});
  }
}

// Every row twice, the first time in reverse order: rows that are not copied as they should be are wrong.
Arrays fanned_out(const Fanout& fanout, const Arrays& inputs, const std::vector<Choice>& adapters) {
  std::vector<std::int64_t> rows(adapters.size());
  std::iota(rows.begin(), rows.end(), 0);
  auto all = adapters;
  std::reverse(all.begin(), all.end());
  all.insert(all.end(), adapters.begin(), adapters.end());
  auto continued = rows;
  std::reverse(continued.begin(), continued.end());
  continued.insert(continued.end(), rows.begin(), rows.end());
  auto outputs = fanout.run(inputs, fanout.below(inputs), continued, all);
  for (auto& [_, found] : outputs) {
    found.shape.front() /= 2;
    found.bytes.erase(found.bytes.begin(), found.bytes.begin() + static_cast<std::ptrdiff_t>(found.bytes.size() / 2));
  }
  return outputs;
}

void check_by_row(const Bundle& bundle, const std::string& flavour, const RunRows& run, std::vector<Finding>& findings) {
  const auto& subjects = bundle.manifest().bank->rows;
  std::vector<Golden> goldens;
  goldens.reserve(subjects.size());
  std::vector<const Golden*> all;
  for (const auto& subject : subjects) {
    all.push_back(&goldens.emplace_back(bundle, subject));
    findings.push_back({flavour, subject, false, worst_of_all_rows({all.back()}, {subject}, run)});
  }
  if (bundle.manifest().batch_invariant) {
    findings.push_back({flavour, std::nullopt, true, worst_of_all_rows(all, subjects, run)});
  }
}

void check_baked(const Bundle& bundle, const std::string& adapter, std::vector<Finding>& findings) {
  const Baked baked(bundle, adapter);
  const Run run = [&](const Arrays& inputs) { return baked.run(inputs); };
  findings.push_back({"baked", adapter, false, worst_of(Golden(bundle, adapter), run)});
}

}  // namespace

std::vector<Finding> self_check(const Bundle& bundle, const Engine& engine) {
  const auto& manifest = bundle.manifest();
  std::vector<Finding> findings;
  if (manifest.graphs.count("slots")) {
    check_switchboard(bundle, "slots", Feeding::native, "slots", findings);
    check_switchboard(bundle, "slots", Feeding::plain, "slots, fed", findings);
  }
  if (manifest.graphs.count("inputs")) check_switchboard(bundle, "inputs", Feeding::plain, "inputs", findings);
  if (manifest.graphs.count("bank")) {
    const Bank bank(bundle);
    check_by_row(bundle, "bank", [&](const auto& inputs, const auto& rows) { return bank.run(inputs, rows); }, findings);
  }
  if (manifest.graphs.count("fanout")) {
    const Fanout fanout(bundle);
    check_by_row(bundle, "fanout", [&](const auto& inputs, const auto& rows) { return fanned_out(fanout, inputs, rows); },
                 findings);
  }
  for (const auto& record : manifest.adapters) {
    if (!record.baked.empty()) check_baked(bundle, record.name, findings);
  }
  for (const auto& [adapter, worst] : worst_of_texts(bundle, engine)) findings.push_back({kTexts, adapter, false, worst});
  if (const auto worst = worst_of_batches(bundle, engine)) findings.push_back({kBatches, std::nullopt, true, *worst});
  return findings;
}

nlohmann::ordered_json document(const std::vector<Finding>& findings) {
  auto found = nlohmann::ordered_json::array();
  for (const auto& [flavour, adapter, mixed, worst] : findings) {
    nlohmann::ordered_json entry = {{"flavour", flavour}, {"adapter", nullptr}, {"mixed", mixed}, {"worst", worst}};
    if (adapter) entry["adapter"] = *adapter;
    if (flavour == kTexts) entry["tokenized"] = false;
    found.push_back(entry);
  }
  return found;
}

void check(const std::vector<Finding>& findings) {
  if (findings.empty()) throw Fault({"holds no graph that this client can run"});
  const auto is_good = [](const Finding& finding) { return finding.worst <= 1; };  // NaN fails
  if (!std::all_of(findings.begin(), findings.end(), is_good)) {
    throw Fault({"this machine does not compute what the reference computed"});
  }
}
