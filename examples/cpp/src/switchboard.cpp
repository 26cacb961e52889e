#include "switchboard.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "adapter_file.hpp"
#include "fault.hpp"
#include "request.hpp"

namespace {

Feeds feeds_of(const Arrays& arrays) {
  Feeds feeds;
  for (const auto& [name, array] : arrays) feeds.emplace(name, &array);
  return feeds;
}

// The outputs of the base, and that of a head; those of other heads mean nothing.
std::vector<std::string> outputs_of(const Manifest& manifest, const Head& head) {
  std::vector<std::string> names;
  for (const auto& [name, _] : manifest.golden.absolute) names.push_back(name);
  if (!head.output.empty()) names.push_back(head.output);
  return names;
}

std::filesystem::path baked_graph(const Bundle& bundle, const std::string& adapter) {
  const auto& graph = bundle.manifest().adapter(adapter).baked;
  if (graph.empty()) {
    throw Fault({"is not baked into a graph", "adapter `" + adapter + "`", "", "", "build it with `--bake " + adapter + "`"});
  }
  return bundle.path(graph);
}

const BankRecord& bank_of(const Manifest& manifest) {
  if (!manifest.bank) throw Fault({"the manifest does not describe its bank"});
  return *manifest.bank;
}

// The row of the bank that holds an adapter. Never a number from outside: −1 would take the last one.
std::size_t row_of(const Manifest& manifest, const Choice& adapter) {
  const auto& rows = bank_of(manifest).rows;
  const auto found = std::find(rows.begin(), rows.end(), adapter);
  if (found != rows.end()) return static_cast<std::size_t>(found - rows.begin());
  if (adapter) manifest.adapter(*adapter);  // says which there are
  throw RequestFault({"is not in the bank", "adapter `" + adapter.value_or("base") + "`"});
}

void check_rows(const Arrays& inputs, const Manifest& manifest, std::size_t rows) {
  check_inputs(inputs, manifest);
  const auto batch = static_cast<std::size_t>(inputs.begin()->second.shape.front());
  if (rows == batch) return;
  throw RequestFault({"not one adapter for each row", "", std::to_string(rows), std::to_string(batch)});
}

}  // namespace

Switchboard::Switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.graph(flavour), threads), feeding_(feeding) {
  if (flavour == "inputs") neutral_ = neutral_tensors(manifest_);
  for (const auto& record : manifest_.adapters) {
    const bool native = feeding == Feeding::native;
    const auto bytes = native ? bundle.read(record.onnx_adapter) : std::string{};
    auto tensors = native ? parse_adapter_file(bytes, record.onnx_adapter).tensors : bundle.tensors(record.safetensors);
    check_adapter(tensors, manifest_, native ? record.onnx_adapter : record.safetensors);
    keep(record.name, made(record.head, true, bytes, std::move(tensors)));
  }
}

Switchboard::Result Switchboard::run(const Arrays& inputs, const Choice& adapter) const {
  check_inputs(inputs, manifest_);
  const auto held = adapter ? resident(*adapter) : nullptr;  // alive until the end of this call
  const bool native = held && feeding_ == Feeding::native;
  Feeds feeds = feeds_of(inputs);
  feeds.merge(feeds_of(held ? held->tensors : neutral_));
  const Head head = held ? held->head : Head{};
  return {graph_.run(feeds, outputs_of(manifest_, head), native ? &held->native : nullptr), head};
}

void Switchboard::load(const std::string& name, const std::string& bytes, std::vector<std::string> labels) {
  const auto where = "adapter `" + name + "`";
  auto file = parse_adapter_file(bytes, where);
  check_adapter(file.tensors, manifest_, where);
  check_model_version(file.model_version, manifest_, where);
  auto head = head_of(file.tensors, manifest_, std::move(labels), where);
  keep(name, made(std::move(head), false, bytes, std::move(file.tensors)));
}

// ONNX Runtime copies the bytes; a native adapter has the tensors then, and they need not be there twice.
Switchboard::Resident Switchboard::made(Head head, bool built_in, const std::string& bytes, Arrays tensors) const {
  if (feeding_ == Feeding::plain) return {std::move(head), built_in, std::move(tensors)};
  return {std::move(head), built_in, {}, Ort::LoraAdapter::CreateLoraAdapterFromArray(bytes.data(), bytes.size(), nullptr)};
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

std::vector<std::string> Switchboard::labels(const std::string& name) const { return resident(name)->head.labels; }

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

Arrays Bank::run(const Arrays& inputs, const std::vector<Choice>& rows) const {
  check_rows(inputs, manifest_, rows.size());
  std::vector<std::int64_t> ids;
  for (const auto& adapter : rows) ids.push_back(static_cast<std::int64_t>(row_of(manifest_, adapter)));
  const Array chosen = int64_array(ids, {static_cast<std::int64_t>(rows.size())});
  Feeds feeds = feeds_of(inputs);
  feeds.emplace(bank_of(manifest_).ids, &chosen);
  return graph_.run(feeds, {});
}

Mixture::Mixture(const Bundle& bundle, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.graph("mixture"), threads) {
  bank_of(manifest_);
}

Arrays Mixture::run(const Arrays& inputs, const std::vector<Shares>& rows) const {
  check_rows(inputs, manifest_, rows.size());
  const auto width = bank_of(manifest_).rows.size();
  Array weights = make_array("float32", {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(width)});
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (const auto& [adapter, share] : rows[row]) {
      if (!std::isfinite(share)) throw RequestFault({"a share is no number", "adapter `" + adapter.value_or("base") + "`"});
      weights.data<float>()[row * width + row_of(manifest_, adapter)] = share;
    }
  }
  Feeds feeds = feeds_of(inputs);
  feeds.emplace(bank_of(manifest_).weights, &weights);
  return graph_.run(feeds, {});
}

Baked::Baked(const Bundle& bundle, const std::string& adapter, int threads)
    : manifest_(bundle.manifest()), graph_(baked_graph(bundle, adapter), threads),
      outputs_(outputs_of(manifest_, manifest_.adapter(adapter).head)) {}

Arrays Baked::run(const Arrays& inputs) const {
  check_inputs(inputs, manifest_);
  return graph_.run(feeds_of(inputs), outputs_);
}
