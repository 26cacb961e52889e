#include "switchboard.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "adapter_file.hpp"
#include "fault.hpp"
#include "files.hpp"
#include "request.hpp"

namespace {

constexpr const char* kStrengthKey = "adapter_export.strength";  // in the metadata of the graph

Feeds feeds_of(const Arrays& arrays) {
  Feeds feeds;
  for (const auto& [name, array] : arrays) feeds.emplace(name, &array);
  return feeds;
}

// The outputs of the base, and those of some heads; those of other heads mean nothing.
std::vector<std::string> outputs_of(const Manifest& manifest, const std::vector<Head>& heads) {
  std::set<std::string> names;
  for (const auto& [name, _] : manifest.golden.absolute) names.insert(name);
  for (const auto& head : heads) {
    if (!head.output.empty()) names.insert(head.output);
  }
  return {names.begin(), names.end()};
}

std::size_t batch_of(const Arrays& inputs) { return static_cast<std::size_t>(inputs.begin()->second.shape.front()); }

std::filesystem::path baked_graph(const Bundle& bundle, const std::string& adapter) {
  const auto& graph = bundle.manifest().adapter(adapter).baked;
  if (graph.empty()) {
    throw Fault({"is not baked into a graph", "adapter `" + adapter + "`", "", "", "build it with `--bake " + adapter + "`"});
  }
  return bundle.graph_at(graph);
}

const BankRecord& bank_of(const Manifest& manifest) {
  if (!manifest.bank) throw Fault({"the manifest does not describe its bank"});
  return *manifest.bank;
}

const FanoutRecord& fanout_of(const Manifest& manifest) {
  if (!manifest.fanout) throw Fault({"has no graph for fan-out", "", "", "", "build it with `--variants bank,fanout`"});
  return *manifest.fanout;
}

// The row of the bank that holds an adapter. Never a number from outside: −1 would take the last one.
std::size_t row_of(const Manifest& manifest, const Choice& adapter) {
  const auto& rows = bank_of(manifest).rows;
  const auto found = std::find(rows.begin(), rows.end(), adapter);
  if (found != rows.end()) return static_cast<std::size_t>(found - rows.begin());
  if (adapter) manifest.adapter(*adapter);  // says which there are
  throw RequestFault({"is not in the bank", "adapter `" + adapter.value_or("base") + "`"});
}

Array ids_of(const Manifest& manifest, const std::vector<Choice>& rows) {
  std::vector<std::int64_t> ids;
  for (const auto& adapter : rows) ids.push_back(static_cast<std::int64_t>(row_of(manifest, adapter)));
  return int64_array(ids, {static_cast<std::int64_t>(ids.size())});
}

std::vector<Head> heads_of(const Manifest& manifest, const std::vector<Choice>& rows) {
  std::vector<Head> heads;
  for (const auto& adapter : rows) heads.push_back(adapter ? manifest.adapter(*adapter).head : Head{});
  return heads;
}

// One choice for each row.
template <typename T>
void check_rows(const Arrays& inputs, const Manifest& manifest, const std::vector<T>& rows) {
  check_inputs(inputs, manifest);
  const auto batch = batch_of(inputs);
  if (rows.size() != batch) {
    throw RequestFault({"not one adapter for each row", "", std::to_string(rows.size()), std::to_string(batch)});
  }
}

Arrays taken_rows(const Arrays& arrays, const std::vector<std::size_t>& rows) {
  Arrays found;
  for (const auto& [name, array] : arrays) found.emplace(name, taken(array, 0, rows));
  return found;
}

std::size_t size_of(const Arrays& arrays) {
  std::size_t bytes = 0;
  for (const auto& [_, array] : arrays) bytes += array.bytes.size();
  return bytes;
}

// A sha256 of all that a row of the inputs holds.
std::string key_of(const Arrays& inputs, std::size_t row) {
  std::string bytes;
  for (const auto& [_, array] : taken_rows(inputs, {row})) {
    bytes += to_text(array.shape);
    bytes.append(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
  }
  return sha256(bytes);
}

}  // namespace

Switchboard::Switchboard(const Bundle& bundle, const std::string& variant, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.graph(variant), threads) {
  if (variant == "inputs") neutral_ = neutral_tensors(manifest_);
}

Arrays Switchboard::run(const Arrays& inputs, const Loaded& adapter, double strength, const std::vector<Weights>& weights) const {
  if (weights.size() > 1) check_rows(inputs, manifest_, weights);
  else check_inputs(inputs, manifest_);
  auto others = adapter ? scaled(*adapter, strength) : Arrays{};
  if (!weights.empty()) {
    const auto mix = adapter ? adapter->mix : std::nullopt;
    const auto given = weight_tensor(mix, weights, "adapter `" + (adapter ? adapter->name : "base") + "`");
    if (adapter->native) throw RequestFault({"weights of a fusion need an adapter whose tensors are fed"});
    for (const auto& slot : mix->slots) others.insert_or_assign(slot, given);
  }
  Feeds feeds = feeds_of(inputs);
  feeds.merge(feeds_of(adapter ? adapter->tensors : neutral_));
  for (const auto& [name, array] : others) feeds[name] = &array;
  const auto* native = adapter && adapter->native ? &adapter->native : nullptr;
  return graph_.run(feeds, outputs_of(manifest_, {adapter ? adapter->head : Head{}}), native);
}

Arrays Switchboard::scaled(const LoadedAdapter& adapter, double strength) const {
  check_strength(strength);
  if (strength == 1) return {};
  if (adapter.native) throw RequestFault({"a strength needs an adapter whose tensors are fed"});
  const auto parameters = strength_parameters(graph_.metadata(kStrengthKey), manifest_);
  return scaled_tensors(adapter.tensors, manifest_, parameters, strength, "adapter `" + adapter.name + "`");
}

Bank::Bank(const Bundle& bundle, int threads) : manifest_(bundle.manifest()), graph_(bundle.graph("bank"), threads) {
  bank_of(manifest_);
}

Arrays Bank::run(const Arrays& inputs, const std::vector<Choice>& rows) const {
  check_rows(inputs, manifest_, rows);
  const Array chosen = ids_of(manifest_, rows);
  Feeds feeds = feeds_of(inputs);
  feeds.emplace(bank_of(manifest_).ids, &chosen);
  return graph_.run(feeds, outputs_of(manifest_, heads_of(manifest_, rows)));
}

PrefixCache::Values PrefixCache::find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto found = places_.find(key);
  if (found == places_.end()) return nullptr;
  ++counts_.hits;
  kept_.splice(kept_.begin(), kept_, found->second);
  return found->second->second;
}

void PrefixCache::keep(const std::string& key, Values values) {
  const std::lock_guard lock(mutex_);
  ++counts_.loads;
  if (places_.count(key)) return;
  bytes_ += size_of(*values);
  kept_.emplace_front(key, std::move(values));
  places_.emplace(key, kept_.begin());
  for (; bytes_ > limit_; ++counts_.evictions) {
    bytes_ -= size_of(*kept_.back().second);
    places_.erase(kept_.back().first);
    kept_.pop_back();
  }
}

PrefixCounts PrefixCache::counts() const {
  const std::lock_guard lock(mutex_);
  auto found = counts_;
  found.resident = kept_.size();
  return found;
}

Fanout::Fanout(const Bundle& bundle, int threads, std::size_t prefix_bytes)
    : manifest_(bundle.manifest()), lower_(bundle.graph_at(fanout_of(manifest_).prefix), threads),
      upper_(bundle.graph("fanout"), threads), kept_(prefix_bytes > 0 ? std::make_unique<PrefixCache>(prefix_bytes) : nullptr) {
  bank_of(manifest_);
  if (kept_ && !manifest_.batch_invariant) {
    throw Fault({"texts cannot be kept up to the first adapter", "", "a graph in which rows of a batch influence each other"});
  }
}

Arrays Fanout::below(const Arrays& inputs) const {
  check_inputs(inputs, manifest_);
  if (!kept_) return computed(inputs);
  std::vector<std::string> keys;
  std::map<std::string, PrefixCache::Values> found;
  std::vector<std::size_t> missing;  // the first row of each that is not there
  for (std::size_t row = 0; row < batch_of(inputs); ++row) {
    const auto& key = keys.emplace_back(key_of(inputs, row));
    if (found.count(key)) continue;
    if (!found.emplace(key, kept_->find(key)).first->second) missing.push_back(row);
  }
  const auto& records = fanout_of(manifest_).values;
  if (!missing.empty()) {
    const auto values = computed(taken_rows(inputs, missing));
    for (std::size_t at = 0; at < missing.size(); ++at) {
      auto own = std::make_shared<Arrays>();
      for (const auto& record : records) own->emplace(record.name, taken(values.at(record.name), record.batch, {at}));
      const auto& key = keys[missing[at]];
      found[key] = own;
      kept_->keep(key, std::move(own));
    }
  }
  Arrays all;
  for (const auto& record : records) {
    std::vector<const Array*> rows;
    for (const auto& key : keys) rows.push_back(&found.at(key)->at(record.name));
    all.emplace(record.name, joined(rows, record.batch));
  }
  return all;
}

Arrays Fanout::computed(const Arrays& inputs) const {
  std::vector<std::string> names;
  for (const auto& value : fanout_of(manifest_).values) names.push_back(value.name);
  return lower_.run(feeds_of(inputs), names);
}

Arrays Fanout::run(const Arrays& inputs, const std::vector<Choice>& adapters) const {
  const auto values = below(inputs);
  std::vector<std::int64_t> rows(batch_of(inputs));
  std::iota(rows.begin(), rows.end(), 0);
  return run(inputs, values, rows, adapters);
}

Arrays Fanout::run(const Arrays& inputs, const Arrays& values, const std::vector<std::int64_t>& rows,
                    const std::vector<Choice>& adapters) const {
  check_inputs(inputs, manifest_);
  if (rows.empty() || rows.size() != adapters.size()) {
    throw RequestFault({"not one adapter for each row", "", std::to_string(adapters.size()), std::to_string(rows.size())});
  }
  const auto batch = static_cast<std::int64_t>(batch_of(inputs));
  for (const auto row : rows) {
    if (row >= 0 && row < batch) continue;
    throw RequestFault({"no such row of the inputs", "", std::to_string(row), "0 to " + std::to_string(batch - 1)});
  }
  const Array chosen = ids_of(manifest_, adapters), continued = int64_array(rows, {static_cast<std::int64_t>(rows.size())});
  Feeds feeds = feeds_of(inputs);
  for (const auto& [name, value] : values) feeds.emplace(name, &value);
  feeds.emplace(bank_of(manifest_).ids, &chosen);
  feeds.emplace(fanout_of(manifest_).rows, &continued);
  return upper_.run(feeds, outputs_of(manifest_, heads_of(manifest_, adapters)));
}

Baked::Baked(const Bundle& bundle, const std::string& adapter, int threads)
    : manifest_(bundle.manifest()), graph_(baked_graph(bundle, adapter), threads),
      head_(manifest_.adapter(adapter).head) {}

Arrays Baked::run(const Arrays& inputs) const {
  check_inputs(inputs, manifest_);
  return graph_.run(feeds_of(inputs), outputs_of(manifest_, {head_}));
}
