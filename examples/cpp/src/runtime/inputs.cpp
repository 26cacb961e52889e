#include "inputs.hpp"

#include <algorithm>
#include <limits>

#include "fault.hpp"
#include "request.hpp"

using nlohmann::json;

namespace {

constexpr const char* kTokenTypes = "token_type_ids";

// The shape of nested lists, by the first of each.
Shape shape_of(const json& list) {
  Shape shape;
  for (const json* at = &list; at->is_array(); at = &at->front()) {
    shape.push_back(static_cast<std::int64_t>(at->size()));
    if (at->empty()) break;
  }
  return shape;
}

template <typename T>
bool holds(const json& number) {
  if (!number.is_number_integer()) return false;
  if (number.is_number_unsigned()) return number.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<T>::max());
  return number.get<std::int64_t>() >= static_cast<std::int64_t>(std::numeric_limits<T>::min());
}

void put(const json& number, Array& array, std::size_t at) {
  const bool good = array.dtype == "float32" ? number.is_number()
                    : array.dtype == "int32" ? holds<std::int32_t>(number)
                                             : holds<std::int64_t>(number);
  if (!good) throw RequestFault({"an input contains invalid numbers of its type", "", number.dump(), array.dtype});
  if (array.dtype == "float32") array.data<float>()[at] = number.get<float>();
  else if (array.dtype == "int64") array.data<std::int64_t>()[at] = number.get<std::int64_t>();
  else if (array.dtype == "int32") array.data<std::int32_t>()[at] = number.get<std::int32_t>();
  else array.data<bool>()[at] = number.get<std::int64_t>() != 0;
}

void fill(const json& list, std::size_t axis, Array& array, std::size_t& at) {
  if (axis == array.shape.size()) return put(list, array, at++);
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != array.shape[axis]) {
    throw RequestFault({"an array of a row has lists of different lengths"});
  }
  for (const auto& each : list) fill(each, axis + 1, array, at);
}

// An array of a row, [1, …].
Array parse_array(const json& list, const std::string& dtype) {
  auto shape = shape_of(list);
  shape.insert(shape.begin(), 1);
  Array array = make_array(dtype, shape);
  std::size_t at = 0;
  fill(list, 1, array, at);
  return array;
}

}  // namespace

Arrays parse_row(const json& inputs, const Manifest& manifest) {
  Arrays found;
  for (const auto& [name, list] : inputs.items()) found.emplace(name, parse_array(list, input_record(manifest, name).dtype));
  return found;
}

std::vector<Arrays> parse_rows(const json& inputs, const Manifest& manifest) {
  std::size_t rows = 0;
  for (const auto& [name, list] : inputs.items()) {
    input_record(manifest, name);
    if (!list.is_array() || list.empty()) throw RequestFault({"an input has no rows", "`" + name + "`", "", "a list for each row"});
    if (rows != 0 && list.size() != rows) {
      throw RequestFault({"the inputs have different numbers of rows", "`" + name + "`", std::to_string(list.size()), std::to_string(rows)});
    }
    rows = list.size();
  }
  if (rows == 0) check_inputs({}, manifest);  // says what is missing
  std::vector<Arrays> found;
  for (std::size_t row = 0; row < rows; ++row) {
    json own = json::object();
    for (const auto& [name, list] : inputs.items()) own[name] = list[row];
    found.push_back(within_row(row, rows, [&] {
      auto arrays = parse_row(own, manifest);
      check_inputs(arrays, manifest);
      return arrays;
    }));
  }
  return found;
}

Arrays token_inputs(const Tokens& tokens, const Manifest& manifest, const std::optional<Task>& task) {
  const Shape shape{1, static_cast<std::int64_t>(tokens.ids.size())};
  auto types = tokens.types;
  Arrays inputs;
  std::size_t texts = 0;
  for (const auto& record : manifest.inputs) {
    const bool is_mask = record.role == "mask", are_types = record.name == kTokenTypes;
    texts += !is_mask && !are_types;
    if (record.dtype != "int64" || record.role == "values" || record.axes.size() != 2 || texts > 1) {
      throw Fault({"an input that ids do not give", "`" + record.name + "`", "", "", "give arrays for all inputs"});
    }
    if (are_types && !types && task && task->input == "text") types.emplace(tokens.ids.size(), 0);
    if (are_types && !types) {
      throw RequestFault({"the base takes token types, which ids alone give only for a task of one text",
                          std::string("`") + kTokenTypes + "`", "none", "a type for each id",
                          "give `--types 0,0,1,...`, or all inputs with `--inputs`"});
    }
    if (are_types && types->size() != tokens.ids.size()) {
      throw RequestFault({"there is not one token type for each id", std::string("`") + kTokenTypes + "`",
                          std::to_string(types->size()), std::to_string(tokens.ids.size())});
    }
    const auto numbers = is_mask ? std::vector<std::int64_t>(tokens.ids.size(), 1) : are_types ? *types : tokens.ids;
    inputs.emplace(record.name, int64_array(numbers, shape));
  }
  return inputs;
}

std::vector<std::vector<bool>> parse_contexts(const json& document, std::size_t rows) {
  if (document.is_null()) return std::vector<std::vector<bool>>(rows);
  if (document.size() != rows) {
    throw RequestFault({"not one context for each row", "", std::to_string(document.size()), std::to_string(rows)});
  }
  std::vector<std::vector<bool>> found;
  for (const auto& given : document) {
    const auto list = given.is_null() ? std::vector<std::int64_t>{} : given.get<std::vector<std::int64_t>>();
    if (!std::all_of(list.begin(), list.end(), [](std::int64_t number) { return number == 0 || number == 1; })) {
      throw RequestFault({"a context holds what is no 0 or 1", "", "", "1 for each token that may be the answer"});
    }
    found.emplace_back(list.begin(), list.end());
  }
  return found;
}
