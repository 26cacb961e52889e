#include "json_text.hpp"

#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;

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
