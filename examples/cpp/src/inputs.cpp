#include "inputs.hpp"

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
