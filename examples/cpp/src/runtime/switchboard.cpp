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
constexpr float kAbsent = -3e38F;                                // as in a bank; a softmax makes it 0

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
  if (!manifest.fanout) throw Fault({"has no graph for fan-out", "", "", "", "build it with `--flavours bank,fanout`"});
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

// Different choices only where the rows of a batch do not change each other's results.
template <typename T>
void check_mixed(const Manifest& manifest, const std::vector<T>& rows) {
  if (!manifest.batch_invariant && std::set<T>(rows.begin(), rows.end()).size() > 1) {
    throw RequestFault({"the rows of a batch influence each other in this bundle", "", "", "", "send one row a request"});
  }
}

// One choice for each row.
template <typename T>
void check_rows(const Arrays& inputs, const Manifest& manifest, const std::vector<T>& rows) {
  check_inputs(inputs, manifest);
  const auto batch = batch_of(inputs);
  if (rows.size() != batch) {
    throw RequestFault({"not one adapter for each row", "", std::to_string(rows.size()), std::to_string(batch)});
  }
  check_mixed(manifest, rows);
}

Arrays taken_rows(const Arrays& arrays, const std::vector<std::size_t>& rows) {
  Arrays found;
  for (const auto& [name, array] : arrays) found.emplace(name, taken(array, 0, rows));
  return found;
}

// A call with some of the rows.
struct Part {
  std::vector<std::size_t> rows;
  Outcome outcome;
};

// An output of several calls as that of one, as wide as the widest; where a row has nothing, it is masked.
Array gathered(const std::vector<Part>& parts, const std::string& name, std::size_t rows) {
  Shape shape;
  for (const auto& part : parts) {
    const auto found = part.outcome.outputs.find(name);
    if (found == part.outcome.outputs.end()) continue;
    auto own = found->second.shape;
    const bool has_rows = own.size() >= 2 && own.front() == static_cast<std::int64_t>(part.rows.size());
    if (!has_rows || found->second.dtype != "float32") throw Fault({"is no output whose rows can be put together", name});
    if (shape.empty()) shape = own;
    const auto wide = std::max(shape.back(), own.back());
    own.front() = shape.front();
    shape.back() = own.back() = wide;
    if (own != shape) throw Fault({"has other shapes in other calls", name, to_text(own), to_text(shape)});
  }
  shape.front() = static_cast<std::int64_t>(rows);
  Array all = make_array("float32", shape);
  std::fill_n(all.data<float>(), all.count(), kAbsent);
  const std::size_t wide = static_cast<std::size_t>(shape.back()), lines = all.count() / rows / wide;
  for (const auto& part : parts) {
    const auto found = part.outcome.outputs.find(name);
    if (found == part.outcome.outputs.end()) continue;
    const auto own = static_cast<std::size_t>(found->second.shape.back());
    const auto* source = found->second.data<float>();
    for (const auto row : part.rows) {
      for (std::size_t line = row * lines; line < (row + 1) * lines; ++line, source += own) {
        std::copy_n(source, own, all.data<float>() + line * wide);
      }
    }
  }
  return all;
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

Switchboard::Switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.graph(flavour), threads), feeding_(feeding) {
  if (flavour == "inputs") neutral_ = neutral_tensors(manifest_);
  for (const auto& record : manifest_.adapters) {
    const auto bytes = bundle.read(record.onnx_adapter);
    auto file = checked(bytes, record.onnx_adapter);
    check_head(file.tensors, manifest_, record.head, record.onnx_adapter);
    keep(record.name, made({record.head, true, record.mix, std::move(file.tensors)}, bytes, file.is_widened));
  }
}

Outcome Switchboard::run(const Arrays& inputs, const Choice& adapter, const std::vector<Weights>& weights) const {
  if (weights.size() > 1) check_rows(inputs, manifest_, weights);
  else check_inputs(inputs, manifest_);
  const auto held = adapter ? resident(*adapter) : nullptr;  // alive until the end of this call
  Arrays others;
  if (!weights.empty()) {
    if (held && feeding_ == Feeding::native) throw RequestFault({"weights of a fusion need an adapter whose tensors are fed"});
    const auto mix = held ? held->mix : std::nullopt;
    const auto given = weight_tensor(mix, weights, "adapter `" + adapter.value_or("base") + "`");
    for (const auto& slot : mix->slots) others.emplace(slot, given);
  }
  return run_held(inputs, held.get(), others);
}

Outcome Switchboard::run(const Arrays& inputs, const std::vector<ScaledAdapter>& rows) const {
  for (const auto& row : rows) {
    if (row.name) check_strength(row.strength);  // NaN would be in the group of any number
  }
  check_rows(inputs, manifest_, rows);
  std::map<ScaledAdapter, std::vector<std::size_t>> groups;
  for (std::size_t row = 0; row < rows.size(); ++row) groups[rows[row]].push_back(row);
  std::vector<Part> parts;
  for (const auto& [adapter, places] : groups) {
    const auto held = adapter.name ? resident(*adapter.name) : nullptr;
    const auto others = held ? scaled(*held, adapter) : Arrays{};
    parts.push_back({places, run_held(taken_rows(inputs, places), held.get(), others)});
  }
  Outcome found{{}, std::vector<Head>(rows.size()), true};
  for (const auto& part : parts) {
    for (const auto row : part.rows) found.heads[row] = part.outcome.heads.front();
  }
  for (const auto& name : outputs_of(manifest_, found.heads)) found.outputs.emplace(name, gathered(parts, name, rows.size()));
  return found;
}

// The tensors that a strength changes.
Arrays Switchboard::scaled(const Resident& held, const ScaledAdapter& adapter) const {
  if (adapter.strength == 1) return {};
  if (feeding_ == Feeding::native) throw RequestFault({"a strength needs an adapter whose tensors are fed"});
  const auto parameters = strength_parameters(graph_.metadata(kStrengthKey), manifest_);
  return scaled_tensors(held.tensors, manifest_, parameters, adapter.strength, "adapter `" + *adapter.name + "`");
}

// Checked inputs through an adapter, with others in the place of some of its tensors.
Outcome Switchboard::run_held(const Arrays& inputs, const Resident* held, const Arrays& others) const {
  Feeds feeds = feeds_of(inputs);
  feeds.merge(feeds_of(held ? held->tensors : neutral_));
  for (const auto& [name, array] : others) feeds[name] = &array;
  const std::vector<Head> heads(batch_of(inputs), held ? held->head : Head{});
  const auto* native = held && held->native ? &held->native : nullptr;
  return {graph_.run(feeds, outputs_of(manifest_, heads), native), heads};
}

void Switchboard::load(const std::string& name, const std::string& bytes, const Claim& claim) {
  const auto where = "adapter `" + name + "`";
  auto file = checked(bytes, where);
  auto head = head_of(file.tensors, manifest_, claim, where);
  keep(name, made({std::move(head), false, std::nullopt, std::move(file.tensors)}, bytes, file.is_widened));
}

AdapterFile Switchboard::checked(const std::string& bytes, const std::string& where) const {
  auto file = parse_adapter_file(bytes, where);
  check_adapter(file.tensors, manifest_, where);
  check_model_version(file.model_version, manifest_, where);
  return file;
}

// ONNX Runtime copies the bytes; a native adapter has the tensors then, and they need not be there twice.
Switchboard::Resident Switchboard::made(Resident resident, const std::string& bytes, bool is_widened) const {
  if (feeding_ == Feeding::plain || is_widened) return resident;
  resident.tensors.clear();
  resident.native = Ort::LoraAdapter::CreateLoraAdapterFromArray(bytes.data(), bytes.size(), nullptr);
  return resident;
}

void Switchboard::unload(const std::string& name) {
  std::unique_lock lock(mutex_);
  if (residents_.erase(name) == 0) throw RequestFault({"is not loaded", "adapter `" + name + "`"});
}

std::vector<std::string> Switchboard::adapters() const {
  std::shared_lock lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, _] : residents_) names.push_back(name);
  return names;
}

std::optional<Task> Switchboard::task(const std::string& name) const { return resident(name)->head.task; }

bool Switchboard::is_built_in(const std::string& name) const { return resident(name)->built_in; }

std::shared_ptr<const Switchboard::Resident> Switchboard::resident(const std::string& name) const {
  std::shared_lock lock(mutex_);
  const auto found = residents_.find(name);
  if (found == residents_.end()) {
    throw RequestFault({"is not loaded", "adapter `" + name + "`", "", "", "load it, or choose one that is loaded"});
  }
  return found->second;
}

void Switchboard::keep(const std::string& name, Resident adapter) {
  auto held = std::make_shared<const Resident>(std::move(adapter));
  std::unique_lock lock(mutex_);
  if (!residents_.emplace(name, std::move(held)).second) {
    throw RequestFault({"an adapter of this name is loaded already", "`" + name + "`", "", "", "unload it first"});
  }
}

Bank::Bank(const Bundle& bundle, int threads) : manifest_(bundle.manifest()), graph_(bundle.graph("bank"), threads) {
  bank_of(manifest_);
}

Outcome Bank::run(const Arrays& inputs, const std::vector<Choice>& rows) const {
  check_rows(inputs, manifest_, rows);
  const Array chosen = ids_of(manifest_, rows);
  Feeds feeds = feeds_of(inputs);
  feeds.emplace(bank_of(manifest_).ids, &chosen);
  const auto heads = heads_of(manifest_, rows);
  return {graph_.run(feeds, outputs_of(manifest_, heads)), heads, true};
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

Outcome Fanout::run(const Arrays& inputs, const std::vector<Choice>& adapters) const {
  const auto values = below(inputs);
  std::vector<std::int64_t> rows(batch_of(inputs));
  std::iota(rows.begin(), rows.end(), 0);
  return run(inputs, values, rows, adapters);
}

Outcome Fanout::run(const Arrays& inputs, const Arrays& values, const std::vector<std::int64_t>& rows,
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
  check_mixed(manifest_, adapters);
  const Array chosen = ids_of(manifest_, adapters), continued = int64_array(rows, {static_cast<std::int64_t>(rows.size())});
  Feeds feeds = feeds_of(inputs);
  for (const auto& [name, value] : values) feeds.emplace(name, &value);
  feeds.emplace(bank_of(manifest_).ids, &chosen);
  feeds.emplace(fanout_of(manifest_).rows, &continued);
  const auto heads = heads_of(manifest_, adapters);
  return {upper_.run(feeds, outputs_of(manifest_, heads)), heads, true};
}

Baked::Baked(const Bundle& bundle, const std::string& adapter, int threads)
    : manifest_(bundle.manifest()), graph_(baked_graph(bundle, adapter), threads),
      head_(manifest_.adapter(adapter).head) {}

Outcome Baked::run(const Arrays& inputs) const {
  check_inputs(inputs, manifest_);
  const std::vector<Head> heads(batch_of(inputs), head_);
  return {graph_.run(feeds_of(inputs), outputs_of(manifest_, heads)), heads};
}
