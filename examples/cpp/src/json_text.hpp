// JSON, read strictly.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

// Throws std::exception if the text is no JSON, or has a key twice in one object: the last would win without a word.
nlohmann::json parse_json(std::string_view text);
