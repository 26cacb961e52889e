// Rows that come as JSON, or as ids.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "arrays.hpp"
#include "manifest.hpp"

// The arrays of one row, [1, …], from its nested lists by name, such as {"input_ids": [101, 102]}.
// Throws RequestFault if the graph has no such input, or a list holds something else than numbers of its type.
Arrays parse_row(const nlohmann::json& inputs, const Manifest& manifest);

// The arrays of each row, from nested lists by name, such as {"input_ids": [[101, 102], [101]]}. Rows may differ in length.
// Throws RequestFault if a row does not fit the inputs of the graph, and json::exception if there are no lists at all.
std::vector<Arrays> parse_rows(const nlohmann::json& inputs, const Manifest& manifest);

// The tokens of a row: their ids, and the type of each, if the types are known.
struct Tokens {
  std::vector<std::int64_t> ids;
  std::optional<std::vector<std::int64_t>> types = {};
};

// The inputs of a row of tokens, without padding. Types that are not given are all 0 for a task of one text; without a task,
// or for one of pairs, a base that takes them refuses the row.
// Throws RequestFault if so, and Fault if the graph has inputs that tokens do not give.
Arrays token_inputs(const Tokens& tokens, const Manifest& manifest, const std::optional<Task>& task);

// For each row a 0 or a 1 for each token: those that may be the answer to a question; empty for a row with null.
// Throws RequestFault if there are other numbers or not one list for each row, and json::exception if there are no lists.
std::vector<std::vector<bool>> parse_contexts(const nlohmann::json& document, std::size_t rows);
