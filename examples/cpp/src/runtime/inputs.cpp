#include "inputs.hpp"

#include <algorithm>

#include "fault.hpp"
#include "request.hpp"

using nlohmann::json;

namespace {

// The shape of nested lists, by the first of each.
Shape shape_of(const json& list) {
  Shape shape;
  for (const json* at = &list; at->is_array(); at = &at->front()) {
    shape.push_back(static_cast<std::int64_t>(at->size()));
    if (at->empty()) break;
  }
  return shape;
}

void put(const json& number, Array& array, std::size_t at) {
  const bool is_float = array.dtype == "float32";
  if (is_float ? !number.is_number() : !number.is_number_integer()) {
    throw RequestFault({"an input holds what is no number of its type", "", number.dump(), array.dtype});
  }
  if (is_float) array.data<float>()[at] = number.get<float>();
  else if (array.dtype == "int64") array.data<std::int64_t>()[at] = number.get<std::int64_t>();
  else if (array.dtype == "int32") array.data<std::int32_t>()[at] = number.get<std::int32_t>();
  else array.data<bool>()[at] = number.get<std::int64_t>() != 0;
}

void fill(const json& list, std::size_t axis, Array& array, std::size_t& at) {
  if (axis == array.shape.size()) return put(list, array, at++);
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != array.shape[axis]) {
    throw RequestFault({"rows of different lengths", "", "", "lists of one length; pad them"});
  }
  for (const auto& each : list) fill(each, axis + 1, array, at);
}

}  // namespace

Arrays parse_inputs(const json& document, const Manifest& manifest) {
  Arrays inputs;
  for (const auto& [name, list] : document.items()) {
    Array array = make_array(input_record(manifest, name).dtype, shape_of(list));
    std::size_t at = 0;
    fill(list, 0, array, at);
    inputs.emplace(name, std::move(array));
  }
  check_inputs(inputs, manifest);
  return inputs;
}

namespace {

// The number of tokens to which rows of so many are filled up, behind the mask.
std::size_t width_of(std::size_t tokens, const Manifest& manifest) {
  const auto record = std::find_if(manifest.inputs.begin(), manifest.inputs.end(),
                                   [](const auto& each) { return each.role == "ids" && each.axes.size() == 2; });
  if (record == manifest.inputs.end()) return tokens;
  const auto lengths = manifest.lengths_of(record->axes[1]);
  const auto found = lengths.at_least(static_cast<std::int64_t>(tokens));
  if (!found || (static_cast<std::size_t>(*found) != tokens && !manifest.padding_neutral)) {
    throw RequestFault({"a text has a number of tokens that the base does not take, and padding would change its results",
                        "", std::to_string(tokens), lengths.text(), "give texts of other lengths"});
  }
  return static_cast<std::size_t>(*found);
}

}  // namespace

Arrays token_inputs(const std::vector<Tokens>& rows, const Manifest& manifest) {
  std::size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.ids.size());
  longest = width_of(longest, manifest);
  const Shape shape{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(longest)};
  std::vector<std::int64_t> ids, types, mask;
  for (const auto& row : rows) {
    for (std::size_t at = 0; at < longest; ++at) {
      ids.push_back(at < row.ids.size() ? row.ids[at] : 0);
      types.push_back(at < row.types.size() ? row.types[at] : 0);
      mask.push_back(at < row.ids.size());
    }
  }
  Arrays inputs;
  for (const auto& record : manifest.inputs) {
    if (record.dtype != "int64" || record.role == "values") {
      throw Fault({"an input that no ids give", "`" + record.name + "`", record.dtype, "ids or a mask, int64"});
    }
    const auto& numbers = record.name == "token_type_ids" ? types : record.role == "mask" ? mask : ids;
    inputs.emplace(record.name, int64_array(numbers, shape));
  }
  return inputs;
}

std::vector<std::vector<bool>> parse_contexts(const json& document) {
  std::vector<std::vector<bool>> found;
  for (const auto& list : document.get<std::vector<std::vector<std::int64_t>>>()) {
    if (!std::all_of(list.begin(), list.end(), [](std::int64_t number) { return number == 0 || number == 1; })) {
      throw RequestFault({"a context holds what is no 0 or 1", "", "", "1 for each token that may be the answer"});
    }
    found.emplace_back(list.begin(), list.end());
  }
  return found;
}
