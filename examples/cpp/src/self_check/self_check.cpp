#include "self_check.hpp"

#include <algorithm>
#include <numeric>

#include "golden_batches.hpp"
#include "golden_parts.hpp"
#include "golden_texts.hpp"
#include "golden_vectors.hpp"
#include "recorded_runs.hpp"

namespace {

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

// Runs one graph after the other, each once open, and keeps what is found.
class SelfCheck {
 public:
  explicit SelfCheck(const Bundle& bundle) : bundle_(bundle), recorded_(bundle) {}

  void check_switchboard(const std::string& variant, Feeding feeding, const std::string& title) {
    const Switchboard switchboard(bundle_, variant);
    const LoadedAdapters adapters(bundle_, feeding);
    std::vector<Choice> subjects{std::nullopt};
    for (const auto& record : bundle_.manifest().adapters) subjects.emplace_back(record.name);
    check_whole({title, variant, subjects, [&](const auto& inputs, const auto& adapter) {
                   return switchboard.run(inputs, adapters.find(adapter));
                 }});
  }

  void check_baked(const std::string& adapter) {
    const Baked baked(bundle_, adapter);
    check_whole({"baked", "baked", {adapter}, [&](const auto& inputs, const auto&) { return baked.run(inputs); }});
  }

  // `run` computes rows as they are recorded; `run_mixed` may do more, and is compared with golden vectors.
  void check_by_row(const std::string& variant, const RunRows& run, const RunRows& run_mixed) {
    const auto& subjects = bundle_.manifest().bank->rows;
    std::vector<Golden> goldens;
    goldens.reserve(subjects.size());
    std::vector<const Golden*> all;
    for (const auto& subject : subjects) {
      all.push_back(&goldens.emplace_back(bundle_, subject));
      found_.push_back({variant, subject, false, worst_of_all_rows({all.back()}, {subject}, run_mixed)});
    }
    if (bundle_.manifest().batch_invariant) {
      found_.push_back({variant, std::nullopt, true, worst_of_all_rows(all, subjects, run_mixed)});
    }
    check_adapters({variant, variant, subjects, [&](const auto& inputs, const auto& adapter) {
                      return run(inputs, std::vector<Choice>(static_cast<std::size_t>(inputs.begin()->second.shape.front()), adapter));
                    }});
  }

  const std::vector<Finding>& found() const { return found_; }

 private:
  void check_whole(const GraphRun& graph) {
    for (const auto& adapter : graph.adapters) {
      found_.push_back({graph.title, adapter, false, worst_of(Golden(bundle_, adapter), adapter, graph.run)});
    }
    check_adapters(graph);
  }

  // What shows in all numbers of an adapter together, and in its bits.
  void check_adapters(const GraphRun& graph) {
    for (const auto& findings : {check_parts(bundle_, graph), recorded_.compare(graph)}) {
      found_.insert(found_.end(), findings.begin(), findings.end());
    }
  }

  const Bundle& bundle_;
  RecordedComparison recorded_;
  std::vector<Finding> found_;
};

}  // namespace

std::vector<Finding> self_check(const Bundle& bundle, const Engine& engine) {
  const auto& manifest = bundle.manifest();
  SelfCheck check(bundle);
  if (manifest.graphs.count("slots")) {
    check.check_switchboard("slots", Feeding::native, "slots");
    check.check_switchboard("slots", Feeding::plain, "slots, fed");
  }
  if (manifest.graphs.count("inputs")) check.check_switchboard("inputs", Feeding::plain, "inputs");
  if (manifest.graphs.count("bank")) {
    const Bank bank(bundle);
    const RunRows run = [&](const auto& inputs, const auto& rows) { return bank.run(inputs, rows); };
    check.check_by_row("bank", run, run);
  }
  if (manifest.graphs.count("fanout")) {
    const Fanout fanout(bundle);
    check.check_by_row("fanout", [&](const auto& inputs, const auto& rows) { return fanout.run(inputs, rows); },
                       [&](const auto& inputs, const auto& rows) { return fanned_out(fanout, inputs, rows); });
  }
  for (const auto& record : manifest.adapters) {
    if (!record.baked.empty()) check.check_baked(record.name);
  }
  auto findings = check.found();
  for (const auto& [adapter, worst] : worst_of_texts(bundle, engine)) findings.push_back({kTexts, adapter, false, worst});
  if (const auto worst = worst_of_batches(bundle, engine)) findings.push_back({kBatches, std::nullopt, true, *worst});
  return findings;
}
