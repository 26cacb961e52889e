#include "engine.hpp"

#include <algorithm>
#include <set>
#include <tuple>

#include "fault.hpp"

namespace {

std::string shapes_of(const Arrays& arrays) {
  std::string text;
  for (const auto& [_, array] : arrays) text += to_text(array.shape);
  return text;
}

// The classes that the row's own adapter has: a bank gives those of the widest.
Array own_classes(const Array& output) {
  const auto width = static_cast<std::size_t>(output.shape.back());
  const auto* first = output.data<float>();
  const auto own = static_cast<std::size_t>(std::find_if(first, first + width, [](float x) { return x < kMasked; }) - first);
  std::vector<std::size_t> places;
  for (std::size_t at = 0; at < own; ++at) places.push_back(at);
  return own == width ? output : taken(output, output.shape.size() - 1, places);
}

}  // namespace

Engine::Engine(const Bundle& bundle, int threads, std::size_t prefix_bytes)
    : bundle_(bundle), threads_(threads), adapters_(bundle, Feeding::plain), token_axes_(token_axis_keys(bundle.manifest())),
      fanout_(prefix_bytes > 0 ? std::make_unique<Fanout>(bundle, threads, prefix_bytes) : nullptr) {}

std::vector<Answer> Engine::answer(const std::vector<Row>& rows) const {
  const auto results = run(rows);
  std::vector<Answer> found;
  for (std::size_t at = 0; at < rows.size(); ++at) {
    found.push_back(within_row(at, rows.size(), [&] { return ::answer(results[at], bundle_.manifest(), rows[at].context); }));
  }
  return found;
}

std::vector<RowResult> Engine::run(const std::vector<Row>& rows) const {
  std::vector<Prepared> all;
  for (std::size_t at = 0; at < rows.size(); ++at) {
    all.push_back(within_row(at, rows.size(), [&] { return prepared(rows[at]); }));
  }
  std::vector<RowResult> results(rows.size());
  for (const auto& call : calls(all)) compute(all, call, results);
  return results;
}

std::optional<Task> Engine::task(const Choice& adapter) const {
  const auto found = adapters_.find(bundle_.manifest().answering(adapter));
  return found ? found->head.task : std::nullopt;
}

void Engine::open_all() const {
  const auto& graphs = bundle_.manifest().graphs;
  if (graphs.count("slots") || graphs.count("inputs")) slots();
  if (graphs.count("bank")) bank();
}

Engine::Prepared Engine::prepared(const Row& row) const {
  const auto& manifest = bundle_.manifest();
  const auto adapter = adapters_.find(manifest.answering(row.adapter));
  const double strength = adapter ? row.strength : 1;
  check_strength(strength);
  if (strength != 1 && !row.weights.empty()) {
    throw RequestFault({"weights are the strengths of a fusion's members", "`strength`", "", "", "multiply the weights by it"});
  }
  if (!row.weights.empty()) weight_tensor(adapter ? adapter->mix : std::nullopt, {row.weights}, "adapter `" + (adapter ? adapter->name : "base") + "`");
  check_inputs(row.inputs, manifest, token_axes_);
  bool counts = adapter && adapter->counts_padding;
  if (counts && strength != 1) counts = counts_padding(manifest, adapter->tensors, slots().scaled(*adapter, strength));
  return {&row, adapter, strength, fitted(row.inputs, manifest, manifest.padding_neutral && !counts)};
}

// The rows of each call. Those of different adapters share one in the bank; otherwise those that run in the same way.
std::vector<std::vector<std::size_t>> Engine::calls(const std::vector<Prepared>& rows) const {
  std::vector<std::vector<std::size_t>> found;
  if (!shares_calls(bundle_.manifest())) {
    for (std::size_t at = 0; at < rows.size(); ++at) found.push_back({at});
    return found;
  }
  using Way = std::tuple<std::string, bool, const LoadedAdapter*, double, bool>;
  std::map<Way, std::size_t> places;
  const bool has_bank = fanout_ || bundle_.manifest().graphs.count("bank");
  for (std::size_t at = 0; at < rows.size(); ++at) {
    const auto& row = rows[at];
    const auto shapes = shapes_of(row.fitted.inputs);
    const auto way = has_bank && row.is_plain() ? Way{shapes, true, nullptr, 1, false}
                                                : Way{shapes, false, row.adapter.get(), row.strength, row.is_weighted()};
    const auto place = places.emplace(way, found.size()).first->second;
    if (place == found.size()) found.emplace_back();
    found[place].push_back(at);
  }
  return found;
}

void Engine::compute(const std::vector<Prepared>& rows, const std::vector<std::size_t>& call, std::vector<RowResult>& results) const {
  const auto& manifest = bundle_.manifest();
  const auto& first = rows[call.front()];
  Arrays inputs;
  for (const auto& [name, _] : first.fitted.inputs) {
    std::vector<const Array*> parts;
    for (const auto at : call) parts.push_back(&rows[at].fitted.inputs.at(name));
    inputs.emplace(name, joined(parts, 0));
  }
  std::vector<Choice> names;
  std::vector<Weights> weights;
  for (const auto at : call) {
    names.push_back(rows[at].adapter ? Choice{rows[at].adapter->name} : Choice{});
    if (rows[at].is_weighted()) weights.push_back(rows[at].row->weights);
  }
  const bool is_mixed = std::set<Choice>(names.begin(), names.end()).size() > 1;
  const bool has_slots = manifest.graphs.count("slots") || manifest.graphs.count("inputs");
  const bool in_bank = first.is_plain() && (fanout_ || is_mixed || !has_slots);
  const auto outputs = !in_bank ? slots().run(inputs, first.adapter, first.strength, weights)
                       : fanout_ ? fanout_->run(inputs, names)
                                 : bank().run(inputs, names);
  for (std::size_t place = 0; place < call.size(); ++place) {
    const auto& row = rows[call[place]];
    auto& result = results[call[place]];
    result = {names[place], row.adapter ? row.adapter->head : Head{}, {}, row.fitted};
    for (const auto& record : manifest.outputs) {
      const bool is_head = record.name == result.head.output;
      if (!is_head && (!manifest.golden.absolute.count(record.name) || record.name == manifest.checksums)) continue;
      auto own = call.size() == 1 ? outputs.at(record.name) : taken(outputs.at(record.name), 0, {place});
      if (is_head && in_bank) own = own_classes(own);
      result.outputs.emplace(record.name, as_given(own, record, result.row));
    }
  }
}

const Switchboard& Engine::slots() const {
  std::call_once(slots_are_open_, [&] {
    const bool has_slots = bundle_.manifest().graphs.count("slots") || !bundle_.manifest().graphs.count("inputs");
    slots_ = std::make_unique<Switchboard>(bundle_, has_slots ? "slots" : "inputs", threads_);
  });
  return *slots_;
}

const Bank& Engine::bank() const {
  std::call_once(bank_is_open_, [&] { bank_ = std::make_unique<Bank>(bundle_, threads_); });
  return *bank_;
}
