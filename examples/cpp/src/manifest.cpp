#include "manifest.hpp"

#include <nlohmann/json.hpp>
#include <set>

#include "fault.hpp"
#include "files.hpp"

using nlohmann::json;

namespace {

constexpr int kMajor = 1;

template <typename T>
T value_or(const json& record, const char* key, const T& otherwise) {
  return record.contains(key) && !record.at(key).is_null() ? record.at(key).get<T>() : otherwise;
}

std::vector<Axis> axes(const json& list) {
  std::vector<Axis> found;
  for (const auto& axis : list) {
    found.push_back(axis.is_string() ? Axis{0, axis.get<std::string>()} : Axis{axis.get<std::int64_t>(), {}});
  }
  return found;
}

InputRecord input(const json& record) {
  if (record.at("role") == "cache") throw Fault({"a decoder's cache, which this client does not keep", record.at("name")});
  std::optional<std::int64_t> limit;
  if (!record.at("limit").is_null()) limit = record.at("limit").get<std::int64_t>();
  return {record.at("name"), record.at("dtype"), axes(record.at("axes")), limit};
}

SlotRecord slot(const json& record) {
  const auto scope = record.at("site").get<std::string>() + "/" + record.at("graph").get<std::string>();
  return {record.at("name"), scope, axes(record.at("axes")), record.at("neutral"),
          value_or(record, "neutral_value", 0.0F)};
}

GoldenRecord golden(const json& record) { return {record.at("path"), record.at("cases"), record.at("absolute")}; }

AdapterRecord adapter(const json& record) {
  return {record.at("name"), value_or(record, "labels", std::vector<std::string>{}), record.at("onnx_adapter"),
          record.at("safetensors"), value_or(record, "baked", std::string{}), golden(record.at("golden"))};
}

std::optional<BankRecord> bank(const json& manifest) {
  if (!manifest.contains("bank") || manifest.at("bank").is_null()) return std::nullopt;
  const auto& record = manifest.at("bank");
  BankRecord found{record.at("ids"), record.at("weights"), {}};
  for (const auto& row : record.at("rows")) {
    found.rows.push_back(row.is_null() ? std::nullopt : std::optional<std::string>(row.get<std::string>()));
  }
  return found;
}

void check_version(const std::string& version) {
  if (std::stoi(version) != kMajor) {
    throw Fault({"a manifest of another major version", "", version, std::to_string(kMajor) + ".x",
                 "take a newer client, or build the bundle again"});
  }
}

void check_names(const Manifest& manifest) {
  std::set<std::string> adapters, inputs, slots;
  for (const auto& record : manifest.inputs) inputs.insert(record.name);
  for (const auto& record : manifest.adapters) {
    if (!adapters.insert(record.name).second) throw Fault({"two adapters have one name", "", "`" + record.name + "`"});
  }
  for (const auto& record : manifest.slots) {
    if (inputs.count(record.name) || !slots.insert(record.name).second) {
      throw Fault({"two tensors have one name", "", "`" + record.name + "`"});
    }
  }
}

Manifest parse(const json& document) {
  check_version(document.at("version"));
  Manifest manifest;
  manifest.minimum_onnxruntime = document.at("minimum_onnxruntime");
  manifest.batch_invariant = document.at("batch_invariant");
  manifest.graphs = document.at("graphs");
  for (const auto& record : document.at("inputs")) manifest.inputs.push_back(input(record));
  for (const auto& record : document.at("outputs")) manifest.outputs.push_back({record.at("name"), axes(record.at("axes"))});
  for (const auto& record : document.at("slots")) manifest.slots.push_back(slot(record));
  for (const auto& record : document.at("adapters")) manifest.adapters.push_back(adapter(record));
  manifest.bank = bank(document);
  manifest.golden = golden(document.at("golden"));
  for (const auto& record : document.at("files")) {
    manifest.files.push_back({record.at("path"), record.at("sha256"), record.at("bytes")});
  }
  check_names(manifest);
  return manifest;
}

}  // namespace

const AdapterRecord& Manifest::adapter(const std::string& name) const {
  std::string known;
  for (const auto& record : adapters) {
    if (record.name == name) return record;
    known += (known.empty() ? "`" : ", `") + record.name + "`";
  }
  throw RequestFault({"is not in the bundle", "adapter `" + name + "`", "", "one of " + known, "choose one of these"});
}

const GoldenRecord& Manifest::golden_of(const std::optional<std::string>& name) const {
  return name ? adapter(*name).golden : golden;
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const auto path = folder / "manifest.json";
  const auto text = read_file(path);
  try {
    return parse(json::parse(text));
  } catch (const std::exception& error) {  // one of ours, or one of the JSON library
    throw Fault({"cannot be used", path.string(), error.what(), "", "build the bundle again"});
  }
}
