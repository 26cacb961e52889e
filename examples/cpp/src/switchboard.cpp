#include "switchboard.hpp"

#include <algorithm>
#include <mutex>

#include "fault.hpp"
#include "request.hpp"
#include "safetensors.hpp"

namespace {

Feeds feeds_of(const Arrays& arrays) {
  Feeds feeds;
  for (const auto& [name, array] : arrays) feeds.emplace(name, &array);
  return feeds;
}

// What a client reads: exactly the outputs that the golden vectors hold.
std::vector<std::string> outputs_of(const GoldenRecord& golden) {
  std::vector<std::string> names;
  for (const auto& [name, _] : golden.absolute) names.push_back(name);
  return names;
}

}  // namespace

Switchboard::Switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.graph(flavour), threads), feeding_(feeding) {
  base_.outputs = outputs_of(manifest_.golden);
  if (flavour == "inputs") base_.tensors = neutral_tensors(manifest_);  // without defaults, even doing nothing is fed
  for (const auto& record : manifest_.adapters) {
    auto adapter = std::make_shared<Resident>();
    adapter->labels = record.labels;
    adapter->outputs = outputs_of(record.golden);
    adapter->tensors = bundle.tensors(record.safetensors);
    check_adapter(adapter->tensors, manifest_, record.safetensors);
    if (feeding == Feeding::native) {
      const auto bytes = bundle.read(record.onnx_adapter);
      adapter->native = Ort::LoraAdapter::CreateLoraAdapterFromArray(bytes.data(), bytes.size(), nullptr);
    }
    keep(record.name, adapter);
  }
}

Arrays Switchboard::run(const Arrays& inputs, const Choice& adapter) const {
  check_inputs(inputs, manifest_);
  const auto held = adapter ? resident(*adapter) : nullptr;  // alive until the end of this call
  const Resident& chosen = held ? *held : base_;
  Feeds feeds = feeds_of(inputs);
  const bool native = static_cast<const OrtLoraAdapter*>(chosen.native) != nullptr;
  if (!native) feeds.merge(feeds_of(chosen.tensors));  // an active adapter and a feed of one name do not go together
  return graph_.run(feeds, chosen.outputs, native ? &chosen.native : nullptr);
}

void Switchboard::load(const std::string& name, const std::string& bytes, std::vector<std::string> labels) {
  auto adapter = std::make_shared<Resident>();
  adapter->tensors = parse_safetensors(bytes, "adapter `" + name + "`");
  check_adapter(adapter->tensors, manifest_, "adapter `" + name + "`");
  adapter->labels = std::move(labels);
  keep(name, adapter);
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

std::vector<std::string> Switchboard::labels(const std::string& name) const { return resident(name)->labels; }

std::shared_ptr<const Switchboard::Resident> Switchboard::resident(const std::string& name) const {
  std::shared_lock lock(mutex_);
  const auto found = residents_.find(name);
  if (found == residents_.end()) {
    throw RequestFault({"is not loaded", "adapter `" + name + "`", "", "", "load it, or choose one that is loaded"});
  }
  return found->second;
}

void Switchboard::keep(const std::string& name, std::shared_ptr<const Resident> adapter) {
  std::unique_lock lock(mutex_);
  if (!residents_.emplace(name, std::move(adapter)).second) {
    throw RequestFault({"an adapter of this name is loaded already", "`" + name + "`", "", "", "unload it first"});
  }
}

Bank::Bank(const Bundle& bundle, int threads) : manifest_(bundle.manifest()), graph_(bundle.graph("bank"), threads) {
  if (!manifest_.bank) throw Fault({"the manifest does not describe its bank"});
}

Arrays Bank::run(const Arrays& inputs, const std::vector<Choice>& rows) const {
  check_inputs(inputs, manifest_);
  const auto batch = inputs.begin()->second.shape.front();
  if (static_cast<std::int64_t>(rows.size()) != batch) {
    throw RequestFault({"not one adapter for each row", "", std::to_string(rows.size()), std::to_string(batch)});
  }
  std::vector<std::int64_t> ids;
  std::transform(rows.begin(), rows.end(), std::back_inserter(ids), [&](const Choice& row) { return id(row); });
  const Array chosen = int64_array(ids, {batch});
  Feeds feeds = feeds_of(inputs);
  feeds.emplace(manifest_.bank->ids, &chosen);
  return graph_.run(feeds, {});
}

std::int64_t Bank::id(const Choice& adapter) const {
  const auto& rows = manifest_.bank->rows;
  const auto found = std::find(rows.begin(), rows.end(), adapter);
  if (found == rows.end()) manifest_.adapter(adapter.value_or("base"));  // says which there are
  if (found == rows.end()) throw RequestFault({"is not in the bank", "adapter `" + adapter.value_or("base") + "`"});
  return found - rows.begin();
}

Baked::Baked(const Bundle& bundle, const std::string& adapter, int threads)
    : manifest_(bundle.manifest()), graph_(bundle.path(manifest_.adapter(adapter).baked), threads),
      outputs_(outputs_of(manifest_.adapter(adapter).golden)) {}

Arrays Baked::run(const Arrays& inputs) const {
  check_inputs(inputs, manifest_);
  return graph_.run(feeds_of(inputs), outputs_);
}
