#include "manifest.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "fault.hpp"
#include "files.hpp"
#include "json_text.hpp"

using nlohmann::json;

namespace {

constexpr std::size_t kLargestSketch = std::size_t{1} << 16;  // numbers of a row

std::vector<Axis> axes(const json& list) {
  std::vector<Axis> found;
  for (const auto& axis : list) {
    found.push_back(axis.is_string() ? Axis{0, axis.get<std::string>()} : Axis{axis.get<std::int64_t>(), {}});
  }
  return found;
}

Lengths lengths(const json& record) {
  known(record, {"minimum", "maximum", "multiple_of", "exceptions"});
  Lengths found;
  found.minimum = value_or(record, "minimum", std::int64_t{1});
  if (record.contains("maximum") && !record.at("maximum").is_null()) found.maximum = record.at("maximum").get<std::int64_t>();
  found.multiple_of = value_or(record, "multiple_of", std::int64_t{1});
  found.exceptions = value_or(record, "exceptions", std::vector<std::int64_t>{});
  if (found.minimum < 1 || found.multiple_of < 1) throw Fault({"lengths that no axis has"});
  return found;
}

InputRecord input(const json& record) {
  known(record, {"name", "dtype", "axes", "role", "limit", "next"});
  if (record.at("role") == "cache") throw Fault({"a decoder's cache, which this client does not keep", record.at("name")});
  std::optional<std::int64_t> limit;
  if (record.contains("limit") && !record.at("limit").is_null()) limit = record.at("limit").get<std::int64_t>();
  return {record.at("name"), record.at("dtype"), axes(record.at("axes")), record.at("role"), limit};
}

SlotRecord slot(const json& record) {
  known(record, {"name", "site", "graph", "parameter", "axes", "neutral", "neutral_value"});
  return {record.at("name"), record.at("site"), record.at("graph"), record.at("parameter"), axes(record.at("axes")),
          record.at("neutral"), value_or(record, "neutral_value", 0.0F)};
}

bool has(const json& record, const char* key) { return record.contains(key) && !record.at(key).is_null(); }

PartsRecord parts(const json& record, const std::map<std::string, double>& outputs) {
  known(record, {"path", "cases", "parts"});
  PartsRecord found{record.at("path"), record.at("cases"), {}};
  for (const auto& part : record.at("parts")) {
    known(part, {"fault", "output", "factor", "limit"});
    found.parts.push_back({part.at("fault"), part.at("output"), part.at("factor"), part.at("limit")});
    const auto& output = found.parts.back().output;
    if (!outputs.count(output)) throw Fault({"a golden part of an output without golden vectors", "", "`" + output + "`"});
  }
  if (found.cases.empty() || found.parts.empty()) throw Fault({"golden parts that prove nothing"});
  return found;
}

GoldenRecord golden(const json& record) {
  known(record, {"path", "cases", "absolute", "reference", "reasons", "separation", "parts", "recorded", "written"});
  if (record.at("cases").empty() || record.at("absolute").empty()) throw Fault({"golden vectors that prove nothing"});
  GoldenRecord found{record.at("path"), record.at("cases"), record.at("absolute")};
  if (has(record, "separation")) known(record.at("separation"), {"least", "fault", "outputs", "weak", "nearest"});
  if (has(record, "parts")) found.parts = parts(record.at("parts"), found.absolute);
  found.recorded = value_or(record, "recorded", found.recorded);
  return found;
}

RecordedRuns recorded_runs(const json& record) {
  known(record, {"runtime", "provider", "processor", "features", "cases"});
  RecordedRuns found{record.at("runtime"), record.at("provider"), record.at("cases")};
  if (found.cases.empty()) throw Fault({"recorded runs of no cases"});
  return found;
}

std::optional<MixRecord> mix(const json& adapter) {
  if (!adapter.contains("mix") || adapter.at("mix").is_null()) return std::nullopt;
  const auto& record = known(adapter.at("mix"), {"slots", "members"});
  return MixRecord{record.at("slots"), record.at("members")};
}

std::optional<Task> task(const json& adapter) {
  if (!adapter.contains("task") || adapter.at("task").is_null()) return std::nullopt;
  return parse_task(adapter.at("task"), "adapter `" + adapter.at("name").get<std::string>() + "`");
}

AdapterRecord adapter(const json& record) {
  known(record, {"name", "kind", "parameters", "onnx_adapter", "safetensors", "source", "base", "golden", "task", "output",
                 "baked", "mix", "precision"});
  return {record.at("name"), {value_or(record, "output", std::string{}), task(record)}, record.at("onnx_adapter"),
          record.at("safetensors"), value_or(record, "baked", std::string{}), golden(record.at("golden")), mix(record)};
}

BankRecord bank(const json& record) {
  known(record, {"ids", "rows", "fillable", "tensors"});
  BankRecord found{record.at("ids"), {}, {}};
  for (const auto& tensor : record.at("tensors")) found.tensors.push_back(tensor.at("name"));
  for (const auto& row : record.at("rows")) {
    found.rows.push_back(row.is_null() ? Choice{} : Choice{row.get<std::string>()});
  }
  return found;
}

FanoutRecord fanout(const json& record, const std::string& batch) {
  known(record, {"prefix", "rows", "values"});
  FanoutRecord found{record.at("prefix"), record.at("rows"), {}};
  for (const auto& value : record.at("values")) {
    const auto shape = axes(known(value, {"name", "dtype", "axes"}).at("axes"));
    const auto is_batch = [&](const Axis& axis) { return !batch.empty() && axis.name == batch; };
    if (std::count_if(shape.begin(), shape.end(), is_batch) != 1) {
      throw Fault({"a value of the fan-out without one axis of the texts", "", value.at("name")});
    }
    const auto at = std::find_if(shape.begin(), shape.end(), is_batch) - shape.begin();
    found.values.push_back({value.at("name"), static_cast<std::size_t>(at)});
  }
  return found;
}

FileRecord file(const json& record) {
  known(record, {"path", "sha256", "bytes"});
  return {record.at("path"), record.at("sha256"), record.at("bytes")};
}

HeadRecord head(const json& record) {
  known(record, {"graph", "output", "result"});
  return {record.at("graph"), record.at("output"), record.at("result")};
}

OutputRecord output(const json& record) {
  known(record, {"name", "dtype", "axes"});
  return {record.at("name"), axes(record.at("axes"))};
}

// A size in a sketch; those in files are not to be trusted.
std::size_t sketch_size(const json& number, std::size_t least) {
  const auto size = number.is_number_unsigned() ? number.get<std::uint64_t>() : std::uint64_t{kLargestSketch} + 1;
  if (size >= least && size <= kLargestSketch) return size;
  throw Fault({"has a size out of range", "a sketch", number.dump(), std::to_string(least) + " to " + std::to_string(kLargestSketch)});
}

SketchRecord sketch_record(const json& record) {
  known(record, {"axes", "largest", "columns", "moduli"});
  SketchRecord found{sketch_size(record.at("axes"), 1), sketch_size(record.at("largest"), 0), sketch_size(record.at("columns"), 0)};
  for (const auto& modulus : record.at("moduli")) found.moduli.push_back(sketch_size(modulus, 1));
  if (found.moduli.empty()) throw Fault({"has no sums, without which a wrong number may not show", "a sketch"});
  sketch_size(found.size(), 1);
  return found;
}

void check_unique(const std::string& what, const std::vector<std::string>& names) {
  std::set<std::string> seen;
  for (const auto& name : names) {
    if (!seen.insert(name).second) throw Fault({"a name occurs twice", "", "`" + name + "` in " + what});
  }
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char sign) { return std::tolower(sign); });
  return text;
}

void check_mix(const Manifest& manifest, const std::vector<std::string>& slots) {
  for (const auto& record : manifest.adapters) {
    for (const auto& name : record.mix ? record.mix->slots : std::vector<std::string>{}) {
      if (std::find(slots.begin(), slots.end(), name) != slots.end()) continue;
      throw Fault({"has no slot for the weights of a fusion", "", "`" + name + "`"});
    }
  }
}

void check_names(const Manifest& manifest) {
  std::vector<std::string> adapters, inputs, slots, files;
  for (const auto& record : manifest.adapters) adapters.push_back(lower(record.name));  // files have these names
  for (const auto& record : manifest.inputs) inputs.push_back(record.name);
  for (const auto& record : manifest.slots) slots.push_back(record.name);
  for (const auto& record : manifest.files) files.push_back(lower(record.path));
  check_unique("adapters", adapters);
  check_unique("inputs", inputs);
  check_unique("slots", slots);
  check_unique("files", files);
  auto others = slots;
  if (manifest.bank) {
    others.push_back(manifest.bank->ids);
    others.insert(others.end(), manifest.bank->tensors.begin(), manifest.bank->tensors.end());
  }
  if (manifest.fanout) {
    others.push_back(manifest.fanout->rows);
    for (const auto& value : manifest.fanout->values) others.push_back(value.name);
  }
  for (const auto& name : others) {
    if (std::find(inputs.begin(), inputs.end(), name) == inputs.end()) continue;
    throw Fault({"a tensor of adapters has the name of a data input", "", "`" + name + "`"});
  }
  check_mix(manifest, slots);
}

// The base first, then adapters, each once.
void check_bank(const Manifest& manifest) {
  const auto& rows = manifest.bank->rows;
  const std::set<Choice> once(rows.begin(), rows.end());
  bool good = !rows.empty() && !rows.front() && once.size() == rows.size();
  for (const auto& row : rows) good = good && (!row || manifest.has(*row));
  if (!good) throw Fault({"has a bank with rows that are no adapters"});
}

// A task needs an output that holds the result of its type, and the base head a task.
void check_heads(const Manifest& manifest) {
  for (const auto& record : manifest.adapters) {
    const auto& [output, task] = record.head;
    bool fits = output.empty() && !task;
    for (const auto& head : manifest.heads) {
      fits = fits || (head.output == output && (!task || head.result == result_of(task->type)));
    }
    const auto what = task ? "has no head for `" + task->type + "`" : "has an output that no head fills";
    if (!fits) throw Fault({what, "adapter `" + record.name + "`"});
  }
  if (manifest.head && !(manifest.has(*manifest.head) && manifest.adapter(*manifest.head).head.task)) {
    throw Fault({"names a head that is no adapter with a task", "", "`" + *manifest.head + "`"});
  }
}

void check_counting(const Manifest& manifest) {
  for (const auto& graph : manifest.counts_padding) {
    const auto is_own = [&](const SlotRecord& slot) { return slot.graph == graph; };
    if (std::any_of(manifest.slots.begin(), manifest.slots.end(), is_own)) continue;
    throw Fault({"`counts_padding` names a graph that has no slots", "", "`" + graph + "`"});
  }
}

// Only outputs of the base are sketched: a bank may have more classes in those of heads than an adapter.
void check_sketches(const Manifest& manifest) {
  for (const auto& [name, record] : manifest.sketches) {
    const auto fits = [&name = name, &record = record](const OutputRecord& output) {
      return output.name == name && record.axes < output.axes.size();
    };
    const auto fills = [&name = name](const HeadRecord& head) { return head.output == name; };
    if (std::any_of(manifest.outputs.begin(), manifest.outputs.end(), fits) &&
        std::none_of(manifest.heads.begin(), manifest.heads.end(), fills)) continue;
    throw Fault({"fits no output of the base", "sketch of `" + name + "`"});
  }
}

// Paths stay in the folder, and every file that is used has a hash.
void check_paths(const Manifest& manifest, const std::filesystem::path& folder) {
  for (const auto& record : manifest.files) inside(folder, record.path);
  std::vector<std::string> used;
  const auto use = [&used](const GoldenRecord& record) {
    used.push_back(record.path);
    if (record.parts) used.push_back(record.parts->path);
  };
  use(manifest.golden);
  for (const auto& path : {manifest.golden_texts, manifest.golden_batches}) {
    if (!path.empty()) used.push_back(path);
  }
  used.insert(used.end(), manifest.media_files.begin(), manifest.media_files.end());
  used.insert(used.end(), manifest.chat_files.begin(), manifest.chat_files.end());
  for (const auto& [_, path] : manifest.graphs) used.push_back(path);
  if (manifest.fanout) used.push_back(manifest.fanout->prefix);
  for (const auto& record : manifest.adapters) {
    used.insert(used.end(), {record.onnx_adapter, record.safetensors});
    use(record.golden);
    if (!record.baked.empty()) used.push_back(record.baked);
  }
  std::set<std::string> listed;
  for (const auto& record : manifest.files) listed.insert(record.path);
  for (const auto& path : used) {
    if (!listed.count(path)) throw Fault({"a file without a hash", "", "`" + path + "`", "a file that `files` lists"});
  }
}

Manifest parse(const json& document, const std::filesystem::path& folder) {
  check_version(document.at("version"), "a manifest");
  known(document, {"version", "producer", "minimum_onnxruntime", "opset", "base", "base_precision", "batch_invariant",
                   "padding_neutral", "counts_padding", "graphs", "inputs", "lengths", "outputs", "heads", "bank", "fanout", "sites", "slots",
                   "adapters", "golden", "golden_texts", "golden_batches", "text", "head", "model_version", "files",
                   "media", "derivation", "recorded", "checksums", "generation", "chat", "sketches", "checksum"});
  Manifest manifest;
  manifest.minimum_onnxruntime = document.at("minimum_onnxruntime");
  manifest.batch_invariant = document.at("batch_invariant");
  manifest.padding_neutral = document.at("padding_neutral");
  manifest.counts_padding = document.at("counts_padding").get<std::vector<std::string>>();
  manifest.graphs = document.at("graphs");
  for (const auto& [axis, record] : document.at("lengths").items()) manifest.lengths.emplace(axis, lengths(record));
  for (const auto& record : document.at("heads")) manifest.heads.push_back(head(record));
  for (const auto& record : document.at("inputs")) manifest.inputs.push_back(input(record));
  for (const auto& record : document.at("outputs")) manifest.outputs.push_back(output(record));
  if (has(document, "sketches")) {
    for (const auto& [name, record] : document.at("sketches").items()) manifest.sketches.emplace(name, sketch_record(record));
  }
  for (const auto& record : document.at("slots")) manifest.slots.push_back(slot(record));
  for (const auto& record : document.at("adapters")) manifest.adapters.push_back(adapter(record));
  for (const auto& record : document.at("files")) manifest.files.push_back(file(record));
  if (document.contains("bank") && !document.at("bank").is_null()) manifest.bank = bank(document.at("bank"));
  if (document.contains("fanout") && !document.at("fanout").is_null()) {
    const bool has_batch = !manifest.inputs.empty() && !manifest.inputs.front().axes.empty();
    manifest.fanout = fanout(document.at("fanout"), has_batch ? manifest.inputs.front().axes.front().name : std::string{});
  }
  manifest.golden = golden(document.at("golden"));
  manifest.golden_texts = value_or(document, "golden_texts", std::string{});
  manifest.golden_batches = value_or(document, "golden_batches", std::string{});
  manifest.checksums = value_or(document, "checksums", std::string{});
  if (document.contains("head") && !document.at("head").is_null()) manifest.head = document.at("head").get<std::string>();
  if (!document.at("text").is_null()) {
    manifest.tokenizer_digest = known(document.at("text"), {"tokenizer", "digest"}).at("digest");
  }
  if (document.contains("media") && !document.at("media").is_null()) {
    const auto& media = known(document.at("media"), {"medium", "input", "processor", "digest", "sampling_rate", "steps", "unknown", "golden"});
    manifest.media = media.at("medium");
    manifest.media_files = {media.at("processor")};
    if (const auto path = value_or(media, "golden", std::string{}); !path.empty()) manifest.media_files.push_back(path);
  }
  if (has(document, "chat")) {
    const auto& chat = known(document.at("chat"), {"templates", "digest", "golden", "roles", "tools"});
    manifest.chat_files = {chat.at("templates"), chat.at("golden")};
  }
  if (has(document, "recorded")) manifest.recorded = recorded_runs(document.at("recorded"));
  manifest.model_version = document.at("model_version");
  check_names(manifest);
  if (manifest.bank) check_bank(manifest);
  check_heads(manifest);
  check_sketches(manifest);
  check_counting(manifest);
  check_paths(manifest, folder);
  return manifest;
}

// Throws Fault where the manifest has other bytes than when it was written: its checksum is their sha256, with zeros in
// place of its own digits.
void check_checksum(const std::string& text, const nlohmann::json& document) {
  const auto found = document.is_object() ? document.find("checksum") : document.end();
  if (found == document.end() || !found->is_string() || found->get<std::string>().size() != 64) return;
  const auto digits = found->get<std::string>();
  auto bytes = text;
  for (auto at = bytes.find(digits); at != std::string::npos; at = bytes.find(digits, at + digits.size())) {
    bytes.replace(at, digits.size(), std::string(digits.size(), '0'));
  }
  if (sha256(bytes) != digits) {
    throw Fault({"has been changed or damaged since it was written", "", "sha256 " + sha256(bytes), "sha256 " + digits,
                 "get the file from its source again"});
  }
}

}  // namespace

bool Lengths::has(std::int64_t length) const {
  const bool inside = length >= minimum && (!maximum || length <= *maximum) && length % multiple_of == 0;
  return inside && std::find(exceptions.begin(), exceptions.end(), length) == exceptions.end();
}

std::optional<std::int64_t> Lengths::at_least(std::int64_t length) const {
  auto found = (std::max(length, minimum) + multiple_of - 1) / multiple_of * multiple_of;
  while (std::find(exceptions.begin(), exceptions.end(), found) != exceptions.end()) found += multiple_of;
  if (maximum && found > *maximum) return std::nullopt;
  return found;
}

std::string Lengths::text() const {
  auto found = std::to_string(minimum);
  if (!maximum) found += " or more";
  else if (*maximum != minimum) found += " to " + std::to_string(*maximum);
  if (multiple_of > 1 && maximum != minimum) found += ", multiples of " + std::to_string(multiple_of);
  const char* before = ", but not ";
  for (const auto each : exceptions) found += std::exchange(before, ", ") + std::to_string(each);
  return found;
}

std::string axis_key(const Axis& axis, std::size_t place) {
  return axis.name.empty() ? std::to_string(axis.size) + "@" + std::to_string(place) : axis.name;
}

std::size_t SketchRecord::size() const { return std::accumulate(moduli.begin(), moduli.end(), largest + columns); }

Lengths Manifest::lengths_of(const Axis& axis) const {
  if (axis.name.empty()) return {axis.size, axis.size};
  const auto found = lengths.find(axis.name);
  return found == lengths.end() ? Lengths{} : found->second;
}

const AdapterRecord& Manifest::adapter(const std::string& name) const {
  std::string known;
  for (const auto& record : adapters) {
    if (record.name == name) return record;
    known += (known.empty() ? "`" : ", `") + record.name + "`";
  }
  throw RequestFault({"is not in the bundle", "adapter `" + name + "`", "", known.empty() ? "none" : "one of " + known,
                      "choose one that is there"});
}

bool Manifest::has(const std::string& name) const {
  return std::any_of(adapters.begin(), adapters.end(), [&](const auto& record) { return record.name == name; });
}

const GoldenRecord& Manifest::golden_of(const Choice& name) const { return name ? adapter(*name).golden : golden; }

Manifest read_manifest(const std::filesystem::path& folder) {
  const auto path = folder / "manifest.json";
  check_inside(folder, path);
  const auto text = read_file(path);
  try {
    const auto document = parse_json(text);
    check_checksum(text, document);
    return parse(document, folder);
  } catch (const json::parse_error& error) {
    throw Fault({"is not valid JSON", path.string(), error.what(), "", "build the bundle again"});
  } catch (const std::exception& error) {  // one of ours, or another one of the JSON library
    throw Fault({"cannot be used", path.string(), error.what(), "", "build the bundle again"});
  }
}
