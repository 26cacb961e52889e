#include "task.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <regex>
#include <set>

#include "fault.hpp"
#include "json_text.hpp"

using nlohmann::json;

namespace {

constexpr double kThreshold = 0.5;

struct Type {
  std::string result;
  std::vector<std::string> activations;  // its own first
  bool has_labels;
  std::size_t width;  // of the result; 0 if the type does not say it
};

const std::map<std::string, Type> kTypes = {
    {"single_label", {"logits", {"softmax"}, true, 0}},
    {"multi_label", {"logits", {"sigmoid"}, true, 0}},
    {"multiple_choice", {"logits", {"softmax"}, false, 1}},
    {"token", {"token_logits", {"softmax"}, true, 0}},
    {"span", {"token_logits", {"softmax"}, false, 2}},
    {"regression", {"logits", {"identity", "sigmoid"}, false, 0}},
    {"embedding", {"embedding", {"identity"}, false, 0}},
    {"multi_vector", {"token_embeddings", {"identity"}, false, 0}},
    {"sparse_embedding", {"embedding", {"identity"}, false, 0}},
    {"ranking", {"logits", {"identity", "sigmoid"}, false, 1}},
};

const Type& type_of(const std::string& name, const std::string& where = "") {
  const auto found = kTypes.find(name);
  if (found != kTypes.end()) return found->second;
  std::string known;
  for (const auto& [each, _] : kTypes) known += (known.empty() ? "`" : ", `") + each + "`";
  throw RequestFault({"unknown problem type", where, "`" + name + "`", "one of " + known});
}

void check_labels(const Task& task, const std::string& where) {
  const std::set<std::string> names(task.labels.begin(), task.labels.end());
  if (names.size() < task.labels.size() || names.count("")) {
    throw RequestFault({"the labels are not one name for each class", where});
  }
  if (task.labels.empty() == type_of(task.type).has_labels) {
    throw RequestFault({"labels and classes differ", where, std::to_string(task.labels.size()) + " labels of `" + task.type + "`"});
  }
}

void check_thresholds(const Task& task, const std::string& where) {
  const auto& numbers = task.thresholds;
  if (numbers.size() != (task.type == "multi_label" ? task.labels.size() : 0)) {
    throw RequestFault({"thresholds are not one for each label of a multi-label task", where, std::to_string(numbers.size())});
  }
  if (!std::all_of(numbers.begin(), numbers.end(), [](double number) { return number >= 0 && number <= 1; })) {
    throw RequestFault({"a threshold is a probability", where, "", "0 to 1"});
  }
}

bool is_one_of(const json& value, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* name) { return value == name; });
}

// Whether vectors of a type are compared with those of other texts.
bool embeds(const std::string& type) { return type == "embedding" || type == "multi_vector" || type == "sparse_embedding"; }

// What only clients with a tokenizer use.
bool is_good(const std::string& key, const json& value, const std::string& type) {
  const bool is_embedding = embeds(type);
  if (key == "template") return value.is_string();
  if (key == "input") return is_one_of(value, {"text", "pair", "image", "audio"});
  if (key == "truncation") return is_one_of(value, {"right", "left"});
  if (key == "max_tokens") return value.is_null() || (value.is_number_integer() && value.get<std::int64_t>() >= 1);
  if (key == "tokenizer" || key == "processor") {
    return value.is_null() || std::regex_match(value.get<std::string>(), std::regex("[0-9a-f]{64}"));
  }
  if (key == "pooling") return value.is_null() || (is_embedding && value.is_string() && !value.get<std::string>().empty());
  if (key == "normalised") return value.is_boolean() && (is_embedding || !value.get<bool>());
  if (key == "widths") {
    const auto widths = value.get<std::vector<std::int64_t>>();
    const bool fall = std::adjacent_find(widths.begin(), widths.end(), std::less_equal<>()) == widths.end();
    return fall && (widths.empty() || (type == "embedding" && widths.back() >= 1));
  }
  if (key == "prefix" || key == "query_prefix" || key == "document_prefix") return value.is_string() && (is_embedding || value.get<std::string>().empty());
  if (key == "skiplist") return value.is_array() && (type == "multi_vector" || value.empty());
  return true;
}

// A record without the keys that have their default, as services give it.
nlohmann::ordered_json without_defaults(const json& record, const std::string& activation) {
  const json defaults = {{"labels", json::array()}, {"thresholds", json::array()}, {"activation", activation}, {"input", "text"},
                         {"truncation", "right"}, {"normalised", false}, {"prefix", ""}, {"widths", json::array()},
                         {"query_prefix", ""}, {"document_prefix", ""}, {"template", ""}, {"skiplist", json::array()}};
  nlohmann::ordered_json found;
  for (const auto& [key, value] : record.items()) {
    if (!value.is_null() && (!defaults.contains(key) || defaults.at(key) != value)) found[key] = value;
  }
  return found;
}

}  // namespace

Task make_task(const std::string& type, const std::vector<std::string>& labels, const std::string& where) {
  Task task{type, labels, type_of(type, where).activations.front(), {}, "text", {{"type", type}}};
  if (!labels.empty()) task.record["labels"] = labels;
  if (type == "multi_label") task.thresholds.assign(labels.size(), kThreshold);
  check_labels(task, where);
  return task;
}

Task parse_task(const json& record, const std::string& where) {
  known(record, {"type", "labels", "activation", "thresholds", "input", "max_tokens", "truncation", "tokenizer", "pooling",
                 "normalised", "prefix", "processor", "widths", "query_prefix", "document_prefix", "template", "skiplist"});
  auto task = make_task(record.at("type"), value_or(record, "labels", std::vector<std::string>{}), where);
  task.record = without_defaults(record, task.activation);
  task.input = value_or(record, "input", task.input);
  task.activation = value_or(record, "activation", task.activation);
  const auto& allowed = type_of(task.type).activations;
  if (std::find(allowed.begin(), allowed.end(), task.activation) == allowed.end()) {
    throw RequestFault({"an activation that `" + task.type + "` does not have", where, "`" + task.activation + "`"});
  }
  const auto thresholds = value_or(record, "thresholds", std::vector<double>{});
  if (!thresholds.empty()) task.thresholds = thresholds;
  check_thresholds(task, where);
  for (const auto& [key, value] : record.items()) {
    if (is_good(key, value, task.type)) continue;
    throw RequestFault({"holds what `" + task.type + "` cannot have", where, "`" + key + "` " + value.dump()});
  }
  return task;
}

std::string result_of(const std::string& type) { return type_of(type).result; }

std::size_t width_of(const Task& task) {
  const auto& type = type_of(task.type);
  return type.has_labels ? task.labels.size() : type.width;
}
