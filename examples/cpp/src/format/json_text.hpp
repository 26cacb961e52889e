// JSON, read strictly.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

// Throws std::exception if the text is no JSON, or has a key twice in one object: the last would win without a word.
nlohmann::json parse_json(std::string_view text);

// The record itself, all of whose keys are known: what a reader would ignore might change the answer. Throws Fault.
const nlohmann::json& known(const nlohmann::json& record, std::initializer_list<const char*> keys);

// Throws Fault if a version is none, or has another major version than the formats that this client reads.
void check_version(const std::string& version, const std::string& what);

// The value of a key; `otherwise` if it is null or left out.
template <typename T>
T value_or(const nlohmann::json& record, const char* key, const T& otherwise) {
  return record.contains(key) && !record.at(key).is_null() ? record.at(key).get<T>() : otherwise;
}
