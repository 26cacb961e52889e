#include "loaded_adapters.hpp"

#include <algorithm>
#include <mutex>

#include "batching.hpp"
#include "fault.hpp"

LoadedAdapters::LoadedAdapters(const Bundle& bundle, Feeding feeding) : manifest_(bundle.manifest()), feeding_(feeding) {
  for (const auto& record : manifest_.adapters) {
    const auto bytes = bundle.read(record.onnx_adapter);
    auto file = checked(bytes, record.onnx_adapter);
    check_head(file.tensors, manifest_, record.head, record.onnx_adapter);
    keep(record.name, record.head, true, record.mix, std::move(file), bytes);
  }
}

Loaded LoadedAdapters::find(const Choice& name) const {
  if (!name) return nullptr;
  std::shared_lock lock(mutex_);
  const auto found = adapters_.find(*name);
  if (found == adapters_.end()) {
    throw RequestFault({"is not loaded", "adapter `" + *name + "`", "", "", "load it, or choose one that is loaded"});
  }
  return found->second;
}

Choice LoadedAdapters::named(const Choice& name) const {
  std::shared_lock lock(mutex_);
  if (name) return *name == "base" && adapters_.count(*name) == 0 ? Choice{} : name;
  std::string answering;
  for (const auto& [other, adapter] : adapters_) {
    if (adapter->head.task && other != manifest_.head) answering += (answering.empty() ? "`" : ", `") + other + "`";
  }
  if (answering.empty()) return name;
  throw RequestFault({"no adapter is named", "", "adapters that answer: " + answering,
                      "one of them, or `base` for the base without them"});
}

std::vector<std::string> LoadedAdapters::names() const {
  std::shared_lock lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, _] : adapters_) names.push_back(name);
  return names;
}

std::size_t LoadedAdapters::loaded_beside() const {
  std::shared_lock lock(mutex_);
  const auto is_beside = [](const auto& entry) { return !entry.second->built_in; };
  return static_cast<std::size_t>(std::count_if(adapters_.begin(), adapters_.end(), is_beside));
}

void LoadedAdapters::load(const std::string& name, const std::string& bytes, const Claim& claim) {
  const auto where = "adapter `" + name + "`";
  auto file = checked(bytes, where);
  auto head = head_of(file.tensors, manifest_, claim, where);
  keep(name, std::move(head), false, std::nullopt, std::move(file), bytes);
}

void LoadedAdapters::unload(const std::string& name) {
  std::unique_lock lock(mutex_);
  if (adapters_.erase(name) == 0) throw RequestFault({"is not loaded", "adapter `" + name + "`"});
}

AdapterFile LoadedAdapters::checked(const std::string& bytes, const std::string& where) const {
  auto file = parse_adapter_file(bytes, where);
  check_adapter(file.tensors, manifest_, where);
  check_model_version(file.model_version, manifest_, where);
  return file;
}

void LoadedAdapters::keep(const std::string& name, Head head, bool built_in, std::optional<MixRecord> mix, AdapterFile file,
                          const std::string& bytes) {
  const bool counts = counts_padding(manifest_, file.tensors);
  auto made = std::make_shared<LoadedAdapter>(
      LoadedAdapter{name, std::move(head), built_in, counts, std::move(mix), std::move(file.tensors)});
  if (feeding_ == Feeding::native && !file.is_widened) {
    made->native = Ort::LoraAdapter::CreateLoraAdapterFromArray(bytes.data(), bytes.size(), nullptr);
    made->tensors.clear();  // ONNX Runtime copied the bytes; the tensors need not be in memory twice
  }
  std::unique_lock lock(mutex_);
  if (!adapters_.emplace(name, std::move(made)).second) {
    throw RequestFault({"an adapter of this name is loaded already", "`" + name + "`", "", "", "unload it first"});
  }
}
