#include "answers.hpp"

#include <algorithm>
#include <cmath>

#include "fault.hpp"

using nlohmann::json;

namespace {

constexpr float kMasked = -1e30F;  // in a bank, the logits of classes that an adapter does not have are below

// One row of an output: `lines` of `width` numbers, of which the adapter's own are the first `own`.
struct Row {
  const float* numbers;
  Shape shape;  // without the batch
  std::size_t lines, width, own;
};

Row row_of(const Array& array, std::size_t row, const std::string& name) {
  if (array.dtype != "float32" || array.shape.size() < 2) throw Fault({"is no output that this client can show", name});
  const Shape shape(array.shape.begin() + 1, array.shape.end());
  const std::size_t count = array.count() / static_cast<std::size_t>(array.shape.front());
  const auto width = static_cast<std::size_t>(shape.back());
  const float* numbers = array.data<float>() + row * count;
  const float* end = std::find_if(numbers, numbers + width, [](float number) { return number < kMasked; });
  return {numbers, shape, width == 0 ? 0 : count / width, width, static_cast<std::size_t>(end - numbers)};
}

json list(const float* numbers, std::size_t count) {
  if (!std::all_of(numbers, numbers + count, [](float number) { return std::isfinite(number); })) {
    throw Fault({"an output is NaN or infinite", "", "", "", "hold the bundle against its golden vectors"});
  }
  return std::vector<float>(numbers, numbers + count);
}

json nested(const Row& row, std::size_t axis, std::size_t& line) {
  if (axis + 1 == row.shape.size()) return list(row.numbers + row.width * line++, row.own);
  json found = json::array();
  for (std::int64_t at = 0; at < row.shape[axis]; ++at) found.push_back(nested(row, axis + 1, line));
  return found;
}

std::string label(const Row& row, std::size_t line, const std::vector<std::string>& labels) {
  const float* numbers = row.numbers + line * row.width;
  const auto count = std::min(row.own, labels.size());
  return labels.at(static_cast<std::size_t>(std::max_element(numbers, numbers + count) - numbers));
}

// Whether each token is one, by the mask of the base; none if there is no mask.
std::vector<bool> tokens(const Arrays& inputs, const Manifest& manifest, std::size_t row, std::size_t count) {
  for (const auto& record : manifest.inputs) {
    const auto& mask = inputs.at(record.name);
    if (record.role != "mask" || mask.dtype != "int64" || static_cast<std::size_t>(mask.shape.back()) != count) continue;
    const auto* numbers = mask.data<std::int64_t>() + row * count;
    return std::vector<bool>(numbers, numbers + count);
  }
  return std::vector<bool>(count, true);
}

json token_labels(const Row& row, const std::vector<bool>& is_token, const std::vector<std::string>& labels) {
  json found = json::array();
  for (std::size_t line = 0; line < row.lines; ++line) {
    found.push_back(is_token[line] ? json(label(row, line, labels)) : json(nullptr));
  }
  return found;
}

}  // namespace

json answers(const Arrays& inputs, const Arrays& outputs, const std::vector<Choice>& adapters,
             const std::vector<Head>& heads, const Manifest& manifest) {
  json found = json::array();
  for (std::size_t at = 0; at < adapters.size(); ++at) {
    json answer = {{"adapter", adapters[at] ? json(*adapters[at]) : json(nullptr)}, {"outputs", json::object()}};
    const auto& [output, labels] = heads[at];
    for (const auto& [name, array] : outputs) {
      if (output.empty() ? !manifest.golden.absolute.count(name) : name != output) continue;
      const auto row = row_of(array, at, name);
      std::size_t line = 0;
      answer["outputs"][name] = nested(row, 0, line);
      if (labels.empty()) continue;
      if (row.shape.size() == 1) answer["label"] = label(row, 0, labels);
      else answer["labels"] = token_labels(row, tokens(inputs, manifest, at, row.lines), labels);
    }
    found.push_back(answer);
  }
  return found;
}
