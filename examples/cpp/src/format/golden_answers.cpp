#include "golden_answers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

using nlohmann::json;

namespace {

constexpr double kUnequal = std::numeric_limits<double>::infinity();

// How far an answer is from the expected one. Labels and places are compared where they are decided, that is where no
// other choice is nearer than rounding; numbers always.
double answer_deviation(const json& found, const json& expected, bool is_decided) {
  if (found.is_number_float() && expected.is_number()) {
    const double difference = std::abs(found.get<double>() - expected.get<double>());
    return std::isnan(difference) ? kUnequal : difference;
  }
  if (found.is_object() && expected.is_object() && found.size() == expected.size()) {
    double worst = 0;
    for (const auto& [key, value] : expected.items()) {
      worst = std::max(worst, found.contains(key) ? answer_deviation(found.at(key), value, is_decided) : kUnequal);
    }
    return worst;
  }
  const auto is_name = [](const json& each) { return each.is_string(); };
  const bool are_names = found.is_array() && (std::any_of(found.begin(), found.end(), is_name) ||
                                              std::any_of(expected.begin(), expected.end(), is_name));
  if (found.is_array() && expected.is_array() && found.size() == expected.size() && !are_names) {
    double worst = 0;
    for (std::size_t at = 0; at < found.size(); ++at) worst = std::max(worst, answer_deviation(found[at], expected[at], is_decided));
    return worst;
  }
  const bool is_choice = are_names || is_name(found) || found.is_number_integer();
  return found == expected || (!is_decided && is_choice && found.type() == expected.type()) ? 0 : kUnequal;
}

}  // namespace

double worst_of_answer(json found, const json& expected, bool is_decided, double allowed) {
  found.erase("adapter");
  found.erase("task");
  const double difference = answer_deviation(found, expected, is_decided);
  return difference == 0 ? 0 : difference / allowed;
}

std::vector<bool> golden_context(const json& record, std::size_t tokens) {
  if (record.at("context").is_null()) return {};
  const auto range = record.at("context").get<std::vector<std::size_t>>();
  std::vector<bool> found(tokens);
  for (std::size_t at = 0; at < tokens; ++at) found[at] = at >= range.at(0) && at < range.at(1);
  return found;
}
