#include "switchboard.hpp"

#include <algorithm>
#include <mutex>
#include <set>

#include "adapter_file.hpp"
#include "fault.hpp"
#include "request.hpp"

namespace {

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

}  // namespace

Switchboard::Switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.graph(flavour), threads), feeding_(feeding) {
  if (flavour == "inputs") neutral_ = neutral_tensors(manifest_);
  for (const auto& record : manifest_.adapters) {
    const auto bytes = bundle.read(record.onnx_adapter);
    auto tensors = checked(bytes, record.onnx_adapter);
    check_head(tensors, manifest_, record.head, record.onnx_adapter);
    keep(record.name, made({record.head, true, record.mix, std::move(tensors)}, bytes));
  }
}

Outcome Switchboard::run(const Arrays& inputs, const Choice& adapter, const std::vector<Weights>& weights) const {
  if (weights.size() > 1) check_rows(inputs, manifest_, weights);
  else check_inputs(inputs, manifest_);
  const auto held = adapter ? resident(*adapter) : nullptr;  // alive until the end of this call
  const bool native = held && feeding_ == Feeding::native;
  if (native && !weights.empty()) throw RequestFault({"weights of a fusion need an adapter whose tensors are fed"});
  Feeds feeds = feeds_of(inputs);
  feeds.merge(feeds_of(held ? held->tensors : neutral_));
  Array given;
  if (!weights.empty()) {
    const auto mix = held ? held->mix : std::nullopt;
    given = weight_tensor(mix, weights, "adapter `" + adapter.value_or("base") + "`");
    for (const auto& slot : mix->slots) feeds[slot] = &given;
  }
  const std::vector<Head> heads(batch_of(inputs), held ? held->head : Head{});
  return {graph_.run(feeds, outputs_of(manifest_, heads), native ? &held->native : nullptr), heads};
}

void Switchboard::load(const std::string& name, const std::string& bytes, const Claim& claim) {
  const auto where = "adapter `" + name + "`";
  auto tensors = checked(bytes, where);
  auto head = head_of(tensors, manifest_, claim, where);
  keep(name, made({std::move(head), false, std::nullopt, std::move(tensors)}, bytes));
}

Arrays Switchboard::checked(const std::string& bytes, const std::string& where) const {
  auto file = parse_adapter_file(bytes, where);
  check_adapter(file.tensors, manifest_, where);
  check_model_version(file.model_version, manifest_, where);
  return std::move(file.tensors);
}

// ONNX Runtime copies the bytes; a native adapter has the tensors then, and they need not be there twice.
Switchboard::Resident Switchboard::made(Resident resident, const std::string& bytes) const {
  if (feeding_ == Feeding::plain) return resident;
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

Fanout::Fanout(const Bundle& bundle, int threads)
    : manifest_(bundle.manifest()), lower_(bundle.graph_at(fanout_of(manifest_).prefix), threads),
      upper_(bundle.graph("fanout"), threads) {
  bank_of(manifest_);
}

Arrays Fanout::below(const Arrays& inputs) const {
  check_inputs(inputs, manifest_);
  return lower_.run(feeds_of(inputs), fanout_of(manifest_).values);
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
