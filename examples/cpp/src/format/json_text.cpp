#include "json_text.hpp"

#include <algorithm>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "fault.hpp"

using nlohmann::json;

namespace {

constexpr int kMajor = 1;

}  // namespace

json parse_json(std::string_view text) {
  std::vector<std::set<std::string>> open;  // the keys of each object that is not closed yet
  return json::parse(text.begin(), text.end(), [&open](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open.emplace_back();
    if (event == json::parse_event_t::object_end) open.pop_back();
    if (event == json::parse_event_t::key && !open.back().insert(value.get<std::string>()).second) {
      throw std::invalid_argument("the key `" + value.get<std::string>() + "` twice");
    }
    return true;
  });
}

const json& known(const json& record, std::initializer_list<const char*> keys) {
  for (const auto& [key, _] : record.items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      throw Fault({"a key that this client does not know", "", "`" + key + "`", "", "take a newer client"});
    }
  }
  return record;
}

void check_version(const std::string& version, const std::string& what) {
  std::smatch parts;
  if (!std::regex_match(version, parts, std::regex(R"((\d{1,9})\.(\d{1,9})\.(\d{1,9}))"))) {
    throw Fault({"no version of " + what, "", "`" + version + "`", "such as `1.0.0`"});
  }
  if (std::stoi(parts[1]) != kMajor) {
    throw Fault({what + " of another major version", "", version, std::to_string(kMajor) + ".x",
                 "take a newer client, or build the bundle again"});
  }
}
