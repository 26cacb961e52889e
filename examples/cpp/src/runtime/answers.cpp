#include "answers.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "fault.hpp"

namespace {

constexpr std::size_t kLongestSpan = 30;  // tokens

using Numbers = std::vector<double>;

// One row of an output: `lines` of `width` numbers, of which the adapter's own are the first `own`.
struct Row {
  const float* numbers;
  Shape shape;  // without the batch
  std::size_t lines, width, own;

  // Throws RequestFault if a number is NaN or infinite.
  std::vector<float> line(std::size_t at) const {
    const float* first = numbers + at * width;
    if (!std::all_of(first, first + own, [](float number) { return std::isfinite(number); })) {
      throw RequestFault({"an output is NaN or infinite", "", "", "", "hold the bundle against its golden vectors"});
    }
    return {first, first + own};
  }
};

Row row_of(const Outcome& outcome, const std::string& name, std::size_t row) {
  const auto& array = outcome.outputs.at(name);
  if (array.dtype != "float32" || array.shape.size() < 2) throw Fault({"is no output that this client can show", name});
  const Shape shape(array.shape.begin() + 1, array.shape.end());
  const std::size_t count = array.count() / static_cast<std::size_t>(array.shape.front());
  const auto width = static_cast<std::size_t>(shape.back());
  const float* numbers = array.data<float>() + row * count;
  const auto is_masked = [&](float number) { return outcome.is_masked && number < kMasked; };
  const auto own = static_cast<std::size_t>(std::find_if(numbers, numbers + width, is_masked) - numbers);
  return {numbers, shape, width == 0 ? 0 : count / width, width, own};
}

Answer nested(const Row& row, std::size_t axis, std::size_t& line) {
  if (axis + 1 == row.shape.size()) return row.line(line++);
  Answer found = Answer::array();
  for (std::int64_t at = 0; at < row.shape[axis]; ++at) found.push_back(nested(row, axis + 1, line));
  return found;
}

Answer nested(const Row& row) {
  std::size_t line = 0;
  return nested(row, 0, line);
}

template <typename Line>
Numbers softmax(const Line& logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  Numbers found;
  double total = 0;
  for (const double logit : logits) total += found.emplace_back(std::exp(logit - highest));
  for (auto& number : found) number /= total;
  return found;
}

// 1 / (1 + exp(−x)), without overflow.
double sigmoid(double logit) {
  const double power = std::exp(-std::abs(logit));
  return logit >= 0 ? 1 / (1 + power) : power / (1 + power);
}

Numbers activated(const Task& task, const std::vector<float>& line) {
  if (task.activation == "softmax") return softmax(line);
  Numbers found(line.begin(), line.end());
  if (task.activation == "sigmoid") std::transform(found.begin(), found.end(), found.begin(), sigmoid);
  return found;
}

Answer by_label(const Task& task, const Numbers& shares) {
  if (shares.size() != task.labels.size()) {
    throw RequestFault({"labels and classes differ", "", std::to_string(task.labels.size()), std::to_string(shares.size())});
  }
  Answer found = Answer::object();
  for (std::size_t at = 0; at < shares.size(); ++at) found[task.labels[at]] = shares[at];
  return found;
}

// The most probable class, the first of several.
Answer prediction(const Task& task, const std::vector<float>& line) {
  const auto shares = activated(task, line);
  const auto probabilities = by_label(task, shares);
  const auto best = std::max_element(shares.begin(), shares.end());
  return {{"label", task.labels[static_cast<std::size_t>(best - shares.begin())]},
          {"probability", *best},
          {"probabilities", probabilities}};
}

Answer label_set(const Task& task, const std::vector<float>& line) {
  const auto shares = activated(task, line);
  const auto probabilities = by_label(task, shares);
  Answer labels = Answer::array();
  for (std::size_t at = 0; at < shares.size(); ++at) {
    if (shares[at] >= task.thresholds[at]) labels.push_back(task.labels[at]);
  }
  return {{"labels", labels}, {"probabilities", probabilities}};
}

Answer token_labels(const Task& task, const Row& row, const std::vector<bool>& is_real) {
  Answer found = Answer::array();
  for (std::size_t at = 0; at < row.lines; ++at) {
    found.push_back(is_real[at] ? prediction(task, row.line(at)) : Answer(nullptr));
  }
  return {{"tokens", found}};
}

// The span with the highest product of the softmax of its start and of its end over the tokens that may be the answer.
Answer span(const Row& row, const std::vector<bool>& is_real, const std::vector<bool>& context) {
  std::vector<std::size_t> places;
  Numbers starts, ends;
  for (std::size_t at = 0; at < row.lines; ++at) {
    const auto line = is_real[at] ? row.line(at) : std::vector<float>{};
    if (line.empty() || (!context.empty() && !context[at])) continue;
    places.push_back(at);
    starts.push_back(line.at(0));
    ends.push_back(line.at(1));
  }
  if (places.empty()) throw RequestFault({"no token may be the answer", "", "", "a text beside the question"});
  starts = softmax(starts);
  ends = softmax(ends);
  std::size_t start = places.front(), end = places.front();
  double probability = 0;
  for (std::size_t first = 0; first < places.size(); ++first) {
    for (std::size_t last = first; last < places.size() && places[last] - places[first] < kLongestSpan; ++last) {
      if (starts[first] * ends[last] <= probability) continue;
      probability = starts[first] * ends[last];
      start = places[first];
      end = places[last];
    }
  }
  return {{"start", start}, {"end", end}, {"probability", probability}};
}

bool is_set(const Array& mask, std::size_t at) {
  const auto size = bytes_of(mask.dtype);  // zero is all zeros in every type that a mask may have
  const auto* bytes = mask.bytes.data() + at * size;
  return std::any_of(bytes, bytes + size, [](std::byte byte) { return byte != std::byte{0}; });
}

// The name of the axis of an output's tokens; empty if no input has it.
std::string token_axis(const Manifest& manifest, const std::string& output) {
  for (const auto& record : manifest.outputs) {
    if (record.name != output || record.axes.size() < 2) continue;
    for (const auto& input : manifest.inputs) {
      for (const auto& axis : input.axes) {
        if (axis.name == record.axes[1].name) return axis.name;
      }
    }
  }
  return {};
}

// Whether each token is one, by the mask of the tokens that an output is about; all of them if there is none. That of an
// encoder is none where they are a decoder's.
std::vector<bool> real_tokens(const Arrays& inputs, const Manifest& manifest, const std::string& output, std::size_t row,
                              std::size_t count) {
  const auto tokens = token_axis(manifest, output);
  std::set<std::string> others;
  for (const auto& record : manifest.inputs) {
    for (const auto& axis : record.axes) {
      if (record.role != "mask") others.insert(axis.name);
    }
  }
  for (const auto& record : manifest.inputs) {
    const auto& axes = record.axes;
    const bool is_own = tokens.empty() || !others.count(axes.back().name) ||
                        std::any_of(axes.begin(), axes.end(), [&](const Axis& axis) { return axis.name == tokens; });
    const auto& mask = inputs.at(record.name);
    if (record.role != "mask" || !is_own || mask.shape.size() != 2) continue;
    if (static_cast<std::size_t>(mask.shape.back()) != count) continue;
    std::vector<bool> found;
    for (std::size_t at = 0; at < count; ++at) found.push_back(is_set(mask, row * count + at));
    return found;
  }
  return std::vector<bool>(count, true);
}

Answer answer(const Task& task, const Row& row, const std::vector<bool>& is_real, const std::vector<bool>& context) {
  if (task.type == "token") return token_labels(task, row, is_real);
  if (task.type == "span") return span(row, is_real, context);
  const auto line = row.line(0);
  if (task.type == "single_label") return prediction(task, line);
  if (task.type == "multi_label") return label_set(task, line);
  if (task.type == "embedding") return {{"vector", line}};
  if (task.type == "regression") return {{"numbers", activated(task, line)}};
  if (task.type == "multiple_choice") return {{"score", line.at(0)}};  // before the softmax over the choices of a question
  return {{"score", activated(task, line).at(0)}};
}

Answer as_it_is(const Outcome& outcome, const Head& head, const Manifest& manifest, std::size_t row) {
  Answer found = Answer::object();
  for (const auto& [name, _] : manifest.golden.absolute) found[name] = nested(row_of(outcome, name, row));  // the base's
  if (!head.output.empty()) found[head.output] = nested(row_of(outcome, head.output, row));
  return {{"outputs", found}};
}

}  // namespace

std::vector<Answer> answers(const Arrays& inputs, const Outcome& outcome, const Manifest& manifest, const Contexts& contexts) {
  if (!contexts.empty() && contexts.size() != outcome.heads.size()) {
    throw RequestFault({"not one context for each row", "", std::to_string(contexts.size()), std::to_string(outcome.heads.size())});
  }
  std::vector<Answer> found;
  for (std::size_t at = 0; at < outcome.heads.size(); ++at) {
    const auto& [output, task] = outcome.heads[at];
    if (!task) {
      found.push_back(as_it_is(outcome, outcome.heads[at], manifest, at));
      continue;
    }
    const auto row = row_of(outcome, output, at);
    const auto context = contexts.empty() ? std::vector<bool>{} : contexts[at];
    if (!contexts.empty() && task->type == "span" && context.size() != row.lines) {
      throw RequestFault({"a context does not say of each token whether it may be the answer", "",
                          std::to_string(context.size()) + " numbers", std::to_string(row.lines)});
    }
    found.push_back(answer(*task, row, real_tokens(inputs, manifest, output, at, row.lines), context));
  }
  return found;
}

Answer with_adapter(const Answer& answer, const Choice& adapter) {
  Answer found = {{"adapter", adapter ? Answer(*adapter) : Answer(nullptr)}};
  found.update(answer);
  return found;
}
