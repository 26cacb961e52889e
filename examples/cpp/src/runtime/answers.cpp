#include "answers.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "fault.hpp"

namespace {

constexpr std::size_t kLongestSpan = 30;  // tokens

using Numbers = std::vector<double>;

// What an output holds for a row: `count` lines of `width` numbers.
struct Lines {
  const float* numbers;
  Shape shape;  // without the batch
  std::size_t count, width;

  // Throws RequestFault if a number is NaN or infinite.
  std::vector<float> line(std::size_t at) const {
    const float* first = numbers + at * width;
    if (!std::all_of(first, first + width, [](float number) { return std::isfinite(number); })) {
      throw RequestFault({"an output is NaN or infinite", "", "", "", "hold the bundle against its golden vectors"});
    }
    return {first, first + width};
  }
};

Lines lines_of(const Arrays& outputs, const std::string& name) {
  const auto& array = outputs.at(name);
  if (array.dtype != "float32" || array.shape.size() < 2) throw Fault({"is no output that this client can show", name});
  const auto width = static_cast<std::size_t>(array.shape.back());
  return {array.data<float>(), {array.shape.begin() + 1, array.shape.end()}, width == 0 ? 0 : array.count() / width, width};
}

Answer nested(const Lines& lines, std::size_t axis, std::size_t& line) {
  if (axis + 1 == lines.shape.size()) return lines.line(line++);
  Answer found = Answer::array();
  for (std::int64_t at = 0; at < lines.shape[axis]; ++at) found.push_back(nested(lines, axis + 1, line));
  return found;
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

using RealTokens = std::vector<bool>;  // for each token of the caller's row whether it is one, and no padding

Answer token_labels(const Task& task, const Lines& lines, const RealTokens& is_real) {
  Answer found = Answer::array();
  for (std::size_t at = 0; at < is_real.size(); ++at) {
    found.push_back(is_real[at] ? prediction(task, lines.line(at)) : Answer(nullptr));
  }
  return {{"tokens", found}};
}

// The span with the highest product of the softmax of its first and of its last token over the tokens of the context.
Answer span(const Lines& lines, const RealTokens& is_real, const std::vector<bool>& context) {
  if (context.empty()) {
    throw RequestFault({"a span needs its context", "", "none", "1 for each token that may be the answer, 0 for the others"});
  }
  if (context.size() != is_real.size()) {
    throw RequestFault({"a context does not say of each token whether it may be the answer", "",
                        std::to_string(context.size()) + " numbers", std::to_string(is_real.size())});
  }
  std::vector<std::size_t> places;
  Numbers starts, ends;
  for (std::size_t at = 0; at < context.size(); ++at) {
    if (!is_real[at]) continue;
    const auto line = lines.line(at);
    if (!context[at]) continue;
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
  return {{"first_token", start}, {"last_token", end}, {"probability", probability}};
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

// The tokens that an output is about, by their mask. The mask of an encoder's tokens is none of a decoder's.
RealTokens real_tokens(const RowResult& result, const Manifest& manifest, std::size_t count) {
  const auto tokens = token_axis(manifest, result.head.output);
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
    if (record.role != "mask" || !is_own || axes.size() != 2) continue;
    const auto& mask = result.row.inputs.at(record.name);
    const auto& cut = result.row.cuts.at(axis_key(axes[1], 1));
    if (count != cut.given) continue;
    RealTokens found(count);
    for (std::size_t at = 0; at < cut.kept; ++at) found[cut.before + at] = is_set(mask, at);
    return found;
  }
  return RealTokens(count, true);
}

// The vectors of the real tokens, or of those in the context, if there is one.
Answer token_vectors(const Lines& lines, const RealTokens& real, const std::vector<bool>& context) {
  if (!context.empty() && context.size() != real.size()) {
    throw RequestFault({"is not a 0 or 1 for each token", "`context`", std::to_string(context.size()) + " values"});
  }
  Answer vectors = Answer::array();
  for (std::size_t at = 0; at < lines.count; ++at) {
    if (real[at] && (context.empty() || context[at])) vectors.push_back(lines.line(at));
  }
  return {{"vectors", vectors}};
}

// The weights above 0, by the ids of their vocabulary entries, the largest first.
template <typename Line>
Answer sparse_vector(const Line& line) {
  std::vector<std::size_t> ids;
  for (std::size_t id = 0; id < line.size(); ++id) {
    if (line[id] > 0) ids.push_back(id);
  }
  std::stable_sort(ids.begin(), ids.end(), [&](std::size_t first, std::size_t second) { return line[first] > line[second]; });
  Answer weights = Answer::object();
  for (const auto id : ids) weights[std::to_string(id)] = line[id];
  return {{"weights", weights}};
}

Answer answer_keys(const RowResult& result, const Manifest& manifest, const std::vector<bool>& context) {
  const auto& task = *result.head.task;
  const auto lines = lines_of(result.outputs, result.head.output);
  if (task.type == "token") return token_labels(task, lines, real_tokens(result, manifest, lines.count));
  if (task.type == "span") return span(lines, real_tokens(result, manifest, lines.count), context);
  if (task.type == "multi_vector") return token_vectors(lines, real_tokens(result, manifest, lines.count), context);
  const auto line = lines.line(0);
  if (task.type == "single_label") return prediction(task, line);
  if (task.type == "multi_label") return label_set(task, line);
  if (task.type == "embedding") return {{"vector", line}};
  if (task.type == "sparse_embedding") return sparse_vector(line);
  if (task.type == "regression") return {{"numbers", activated(task, line)}};
  if (task.type == "multiple_choice") return {{"score", line.at(0)}};  // before the softmax over the choices of a question
  return {{"score", activated(task, line).at(0)}};
}

Answer named(const RowResult& result, const Answer& task, const Answer& keys) {
  Answer found = {{"adapter", result.adapter ? Answer(*result.adapter) : Answer(nullptr)}, {"task", task}};
  found.update(keys);
  return found;
}

}  // namespace

void check_finite(const RowResult& result) {
  for (const auto& [name, _] : result.outputs) {
    const auto lines = lines_of(result.outputs, name);
    for (std::size_t at = 0; at < lines.count; ++at) lines.line(at);
  }
}

Answer answer(const RowResult& result, const Manifest& manifest, const std::vector<bool>& context) {
  if (!result.head.task) return raw_answer(result);
  return named(result, result.head.task->type, answer_keys(result, manifest, context));
}

Answer raw_answer(const RowResult& result) {
  Answer outputs = Answer::object();
  for (const auto& [name, _] : result.outputs) {
    std::size_t line = 0;
    outputs[name] = nested(lines_of(result.outputs, name), 0, line);
  }
  return named(result, nullptr, {{"outputs", outputs}});
}
