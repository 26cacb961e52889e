#include "request.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "fault.hpp"
#include "json_text.hpp"

namespace {

constexpr double kStrongest = 1000;

using Sizes = std::map<std::string, std::int64_t>;

// Whether a shape has these axes; names get their lengths where they come up first. ONNX Runtime does not look at it.
bool fits(const Shape& shape, const std::vector<Axis>& axes, Sizes& sizes, const std::string& scope = "") {
  if (shape.size() != axes.size()) return false;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const auto expected = axes[i].name.empty() ? axes[i].size : sizes.emplace(scope + axes[i].name, shape[i]).first->second;
    if (shape[i] != expected || shape[i] < 1) return false;
  }
  return true;
}

std::string axes_text(const std::vector<Axis>& axes) {
  std::string text = "[";
  for (const auto& axis : axes) text += (text == "[" ? "" : ", ") + (axis.name.empty() ? std::to_string(axis.size) : axis.name);
  return text + "]";
}

template <typename T>
bool in_range(const Array& array, std::int64_t limit) {
  const T* ids = array.data<T>();
  return std::all_of(ids, ids + array.count(), [&](T id) { return id >= 0 && static_cast<std::int64_t>(id) < limit; });
}

// The base would compute something else, without a word, at lengths that it was not made for.
void check_lengths(const Array& array, const InputRecord& record, const Manifest& manifest, const std::set<std::string>& free) {
  for (std::size_t i = 0; i < record.axes.size(); ++i) {
    if (i > 0 && free.count(axis_key(record.axes[i], i))) continue;
    const auto lengths = manifest.lengths_of(record.axes[i]);
    if (lengths.has(array.shape[i])) continue;
    throw RequestFault({"an input has a length that the base does not take",
                        "`" + record.name + "`, axis `" + record.axes[i].name + "`", std::to_string(array.shape[i]),
                        lengths.text(), "shorten it, or fill it up"});
  }
}

void check_ids(const Array& array, const InputRecord& record) {
  const bool good = array.dtype == "int32" ? in_range<std::int32_t>(array, *record.limit)
                                           : in_range<std::int64_t>(array, *record.limit);
  if (!good) {
    throw RequestFault({"an id is out of range", "`" + record.name + "`", "",
                        "0 to " + std::to_string(*record.limit - 1), "use the tokenizer that belongs to the base"});
  }
}

// 1 for tokens and 0 for padding; a row without tokens has no answer.
template <typename T>
bool is_mask(const Array& array) {
  const T* numbers = array.data<T>();
  const auto width = static_cast<std::size_t>(array.shape.back());
  if (!std::all_of(numbers, numbers + array.count(), [](T number) { return number == 0 || number == 1; })) return false;
  for (const T* row = numbers; row != numbers + array.count(); row += width) {
    if (std::find(row, row + width, T{1}) == row + width) return false;
  }
  return true;
}

void check_mask(const Array& array, const InputRecord& record) {
  const bool good = array.dtype == "int64"   ? is_mask<std::int64_t>(array)
                    : array.dtype == "int32" ? is_mask<std::int32_t>(array)
                    : array.dtype == "bool"  ? is_mask<std::uint8_t>(array)
                                             : true;
  if (!good) {
    throw RequestFault({"a mask that leaves no token, or is none", "`" + record.name + "`", "",
                        "1 for each token, 0 for padding, and a token in each row"});
  }
}

bool has_slot(const Manifest& manifest, const std::string& name) {
  return std::any_of(manifest.slots.begin(), manifest.slots.end(), [&](const auto& slot) { return slot.name == name; });
}

bool is_input(const Manifest& manifest, const std::string& name) {
  return std::any_of(manifest.inputs.begin(), manifest.inputs.end(), [&](const auto& input) { return input.name == name; });
}

bool is_finite(const Array& array) {
  const auto* numbers = array.data<float>();
  return std::all_of(numbers, numbers + array.count(), [](float number) { return std::isfinite(number); });
}

// What a tensor's axes must be: an idle one may be shorter along those that are numbers.
std::vector<Axis> axes_of(const SlotRecord& slot, const Array& array) {
  auto axes = slot.axes;
  for (std::size_t i = 0; is_neutral(array, slot) && i < axes.size(); ++i) {
    if (axes[i].name.empty()) axes[i].size = slot.neutral[i];
  }
  return axes;
}

// The head whose slots an adapter fills, if any.
std::optional<HeadRecord> filled_head(const Arrays& tensors, const Manifest& manifest, const std::string& where) {
  std::set<std::string> busy;
  for (const auto& slot : manifest.slots) {
    if (slot.site == "head" && !is_neutral(tensors.at(slot.name), slot)) busy.insert(slot.graph);
  }
  if (busy.size() > 1) throw RequestFault({"fills several heads", where});
  for (const auto& head : manifest.heads) {
    if (busy.count(head.graph)) return head;
  }
  return std::nullopt;
}

// Whether an adapter of the bundle does tasks of this type by the head.
bool answers(const HeadRecord& head, const Manifest& manifest, const std::string& type) {
  return std::any_of(manifest.adapters.begin(), manifest.adapters.end(), [&](const auto& adapter) {
    return adapter.head.output == head.output && adapter.head.task && adapter.head.task->type == type;
  });
}

// The head for a type of task that has no slots, and so cannot be seen in an adapter: the only one with its result, or
// of several, the only one by which adapters of this type answer.
std::optional<HeadRecord> bare_head(const Manifest& manifest, const std::string& type) {
  std::vector<HeadRecord> bare, used;
  for (const auto& head : manifest.heads) {
    const bool has_slots = std::any_of(manifest.slots.begin(), manifest.slots.end(), [&](const auto& slot) {
      return slot.site == "head" && slot.graph == head.graph;
    });
    if (has_slots || head.result != result_of(type)) continue;
    bare.push_back(head);
    if (answers(head, manifest, type)) used.push_back(head);
  }
  const auto& fitting = used.empty() ? bare : used;
  return fitting.size() == 1 ? std::optional(fitting.front()) : std::nullopt;
}

// How many numbers a head gives along its last axis; 0 if its tensors do not say it.
std::size_t classes_of(const Arrays& tensors, const Manifest& manifest, const HeadRecord& head) {
  for (const auto& slot : manifest.slots) {
    if (slot.site != "head" || slot.graph != head.graph) continue;
    for (std::size_t axis = 0; axis < slot.axes.size(); ++axis) {
      if (slot.axes[axis].name == "classes") return static_cast<std::size_t>(tensors.at(slot.name).shape[axis]);
    }
  }
  return 0;
}

void check_task(const Task& task, const std::optional<HeadRecord>& head, const Arrays& tensors, const Manifest& manifest,
                const std::string& where) {
  if (const auto wanted = result_of(task.type); !head || head->result != wanted) {
    const auto found = head ? "a head that gives `" + head->result + "`" : "no head";
    throw RequestFault({"has no head for `" + task.type + "`", where, found, "a head that gives `" + wanted + "`"});
  }
  const auto wanted = width_of(task), classes = classes_of(tensors, manifest, *head);
  if (wanted == 0 || wanted == classes) return;
  if (!task.labels.empty()) {
    throw RequestFault({"labels and classes differ", where, std::to_string(wanted), std::to_string(classes)});
  }
  throw RequestFault({"is no head for `" + task.type + "`", where, std::to_string(classes) + " numbers in each result",
                      std::to_string(wanted)});
}

}  // namespace

void check_inputs(const Arrays& inputs, const Manifest& manifest, const std::set<std::string>& free) {
  Sizes sizes;
  for (const auto& record : manifest.inputs) {
    const auto found = inputs.find(record.name);
    if (found == inputs.end()) throw RequestFault({"an input is missing", "`" + record.name + "`"});
    const auto& array = found->second;
    if (array.dtype != record.dtype) {
      throw RequestFault({"an input has a wrong type", "`" + record.name + "`", array.dtype, record.dtype});
    }
    auto axes = record.axes;
    for (std::size_t i = 1; i < axes.size(); ++i) {
      if (free.count(axis_key(axes[i], i))) axes[i] = {0, axis_key(axes[i], i)};
    }
    if (!fits(array.shape, axes, sizes)) {
      throw RequestFault({"an input has a wrong shape", "`" + record.name + "`", to_text(array.shape),
                          axes_text(record.axes) + ", at least 1 along each axis, equal where the name is"});
    }
    check_lengths(array, record, manifest, free);
    if (record.limit) check_ids(array, record);
    if (record.role == "mask") check_mask(array, record);
  }
  for (const auto& [name, _] : inputs) input_record(manifest, name);
}

void check_adapter(const Arrays& tensors, const Manifest& manifest, const std::string& where) {
  std::string faults;
  Sizes sizes;
  for (const auto& slot : manifest.slots) {
    const auto found = tensors.find(slot.name);
    if (found == tensors.end()) {
      faults += "`" + slot.name + "` is missing; ";
    } else if (found->second.dtype != "float32" ||
               !fits(found->second.shape, axes_of(slot, found->second), sizes, slot.site + "/" + slot.graph + "/")) {
      faults += "`" + slot.name + "` is " + found->second.dtype + " " + to_text(found->second.shape) + "; ";
    } else if (!is_finite(found->second)) {
      faults += "`" + slot.name + "` holds NaN or Inf; ";
    }
  }
  for (const auto& [name, _] : tensors) {
    if (!has_slot(manifest, name)) faults += "`" + name + "` is " + (is_input(manifest, name) ? "the name of a data input; " : "left over; ");
  }
  if (!faults.empty()) {
    faults.resize(faults.size() - 2);
    throw RequestFault({"does not fit this bundle's graph", where, faults,
                        "a float32 tensor for each of " + std::to_string(manifest.slots.size()) + " slots",
                        "build the adapter for this bundle"});
  }
}

const InputRecord& input_record(const Manifest& manifest, const std::string& name) {
  for (const auto& record : manifest.inputs) {
    if (record.name == name) return record;
  }
  throw RequestFault({"the graph has no such input", "`" + name + "`"});
}

Head head_of(const Arrays& tensors, const Manifest& manifest, const Claim& claim, const std::string& where) {
  auto head = filled_head(tensors, manifest, where);
  if (claim.type.empty() && claim.labels.empty()) return {head ? head->output : std::string{}, std::nullopt};
  const auto usual = head && head->result == "token_logits" ? "token" : "single_label";
  const auto task = make_task(claim.type.empty() ? usual : claim.type, claim.labels, where);
  if (!head) head = bare_head(manifest, task.type);
  check_task(task, head, tensors, manifest, where);
  return {head->output, task};
}

void check_head(const Arrays& tensors, const Manifest& manifest, const Head& head, const std::string& where) {
  auto filled = filled_head(tensors, manifest, where);
  for (const auto& record : manifest.heads) {  // a head without tensors cannot be seen
    if (!filled && record.output == head.output) filled = record;
  }
  if (filled && filled->output != head.output) {
    throw RequestFault({"fills another head than the manifest says", where, "`" + filled->output + "`", "`" + head.output + "`"});
  }
  if (head.task) check_task(*head.task, filled, tensors, manifest, where);
}

void check_model_version(std::int32_t found, const Manifest& manifest, const std::string& where) {
  if (found != manifest.model_version) {
    throw RequestFault({"was made for another bundle", where, "model version " + std::to_string(found),
                        std::to_string(manifest.model_version), "build the adapter for this bundle"});
  }
}

Array weight_tensor(const std::optional<MixRecord>& mix, const std::vector<Weights>& rows, const std::string& where) {
  if (!mix) throw RequestFault({"has no weights that a call could give", where, "", "a weighted fusion of the bundle"});
  const auto& members = mix->members;
  const auto width = members.size();
  Array array = make_array("float32", {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(width)});
  for (std::size_t row = 0; row < rows.size(); ++row) {
    bool good = rows[row].size() == width;
    for (std::size_t at = 0; at < width; ++at) {
      const auto found = rows[row].find(members[at]);
      good = good && found != rows[row].end() && std::isfinite(found->second);
      if (good) array.data<float>()[row * width + at] = found->second;
    }
    if (!good) throw RequestFault({"a fusion needs a finite weight for each of its members", where});
  }
  return array;
}

StrengthParameters strength_parameters(const std::optional<std::string>& metadata, const Manifest& manifest) {
  const std::string where = "`adapter_export.strength` in the metadata of the graph";
  if (!metadata) {
    throw RequestFault({"the bundle does not say how its adapters are scaled", where, "a bundle of an earlier release", "",
                        "build it again, or leave the strength out"});
  }
  const auto document = parse_json(*metadata);
  StrengthParameters found;
  for (const auto& slot : manifest.slots) {
    if (slot.site == "head" || found.count(slot.graph)) continue;
    if (!document.contains(slot.graph)) throw Fault({"does not name all graphs of the bundle", where, "", "", "build it again"});
    const auto& names = document.at(slot.graph);
    found.emplace(slot.graph, names.is_null() ? std::nullopt : std::optional(names.get<std::vector<std::string>>()));
  }
  return found;
}

Arrays scaled_tensors(const Arrays& tensors, const Manifest& manifest, const StrengthParameters& parameters,
                      double strength, const std::string& where) {
  Arrays found;
  for (const auto& slot : manifest.slots) {
    const auto own = tensors.find(slot.name);
    if (slot.site == "head" || own == tensors.end() || is_neutral(own->second, slot)) continue;
    const auto& scaled = parameters.at(slot.graph);
    if (!scaled) {
      throw RequestFault({"has no strength: what it computes is not what it replaces plus an update that can be scaled",
                          where + ", graph `" + slot.graph + "`", "", "strength 1", "leave the strength out for this adapter"});
    }
    if (std::find(scaled->begin(), scaled->end(), slot.parameter) == scaled->end()) continue;
    auto& array = found.emplace(slot.name, own->second).first->second;
    const double neutral = slot.neutral_value;
    auto* numbers = array.data<float>();
    std::transform(numbers, numbers + array.count(), numbers, [&](float number) {
      return static_cast<float>(neutral + strength * (static_cast<double>(number) - neutral));
    });
  }
  return found;
}

void check_strength(double strength) {
  if (strength >= -kStrongest && strength <= kStrongest) return;  // not true of NaN
  std::ostringstream text;
  text << strength;
  throw RequestFault({"is no strength", "`strength`", text.str(), "a number from -1000 to 1000"});
}

bool is_neutral(const Array& array, const SlotRecord& slot) {
  const auto* numbers = array.data<float>();
  return array.shape == slot.neutral &&
         std::all_of(numbers, numbers + array.count(), [&](float number) { return number == slot.neutral_value; });
}

Arrays neutral_tensors(const Manifest& manifest) {
  Arrays tensors;
  for (const auto& slot : manifest.slots) {
    Array array = make_array("float32", slot.neutral);
    std::fill_n(array.data<float>(), array.count(), slot.neutral_value);
    tensors.emplace(slot.name, std::move(array));
  }
  return tensors;
}
