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

json nested(const Row& row) {
  std::size_t line = 0;
  return nested(row, 0, line);
}

// The classes of one line with their probabilities, the likeliest first.
json classes(const Row& row, std::size_t line, const std::vector<std::string>& labels) {
  const auto logits = list(row.numbers + line * row.width, row.own).get<std::vector<double>>();
  const double highest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const double logit : logits) total += std::exp(logit - highest);
  json found = json::array();
  for (std::size_t at = 0; at < logits.size(); ++at) {
    const auto label = at < labels.size() ? labels[at] : "class " + std::to_string(at);
    found.push_back({{"label", label}, {"probability", std::exp(logits[at] - highest) / total}});
  }
  std::stable_sort(found.begin(), found.end(), [](const json& one, const json& other) {
    return one.at("probability").get<double>() > other.at("probability").get<double>();
  });
  return found;
}

// Whether each token is one, by the mask of the base; all of them if there is no mask.
std::vector<bool> real_tokens(const Arrays& inputs, const Manifest& manifest, std::size_t row, std::size_t count) {
  for (const auto& record : manifest.inputs) {
    const auto& mask = inputs.at(record.name);
    if (record.role != "mask" || mask.dtype != "int64" || static_cast<std::size_t>(mask.shape.back()) != count) continue;
    const auto* numbers = mask.data<std::int64_t>() + row * count;
    return std::vector<bool>(numbers, numbers + count);
  }
  return std::vector<bool>(count, true);
}

json tokens(const Row& row, const std::vector<bool>& is_real, const std::vector<std::string>& labels) {
  json found = json::array();
  for (std::size_t line = 0; line < row.lines; ++line) {
    found.push_back(is_real[line] ? classes(row, line, labels).front() : json(nullptr));
  }
  return found;
}

}  // namespace

json answers(const Arrays& inputs, const Outcome& outcome, const Manifest& manifest) {
  json found = json::array();
  for (std::size_t at = 0; at < outcome.heads.size(); ++at) {
    const auto& [output, labels] = outcome.heads[at];
    json answer = json::object();
    if (output.empty()) {
      for (const auto& [name, _] : manifest.golden.absolute) {
        answer["outputs"][name] = nested(row_of(outcome.outputs.at(name), at, name));
      }
      found.push_back(answer);
      continue;
    }
    const auto row = row_of(outcome.outputs.at(output), at, output);
    if (row.shape.size() > 1) answer["tokens"] = tokens(row, real_tokens(inputs, manifest, at, row.lines), labels);
    else if (!labels.empty()) answer["classes"] = classes(row, 0, labels);
    else answer["numbers"] = nested(row);
    found.push_back(answer);
  }
  return found;
}
