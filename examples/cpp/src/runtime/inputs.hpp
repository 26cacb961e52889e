// Inputs that come as JSON.
#pragma once

#include <nlohmann/json.hpp>

#include <vector>

#include "arrays.hpp"
#include "manifest.hpp"

// Nested lists by name, such as {"input_ids": [[101, 102]]}, as arrays of the types that the manifest names.
// Throws RequestFault if they do not fit the inputs of the graph, and json::exception if they are no lists at all.
Arrays parse_inputs(const nlohmann::json& document, const Manifest& manifest);

// The tokens of a row: their ids, and the type of each; all of type 0 if `types` is empty.
struct Tokens {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> types = {};
};

// The inputs that rows of tokens give, padded to the longest. Throws Fault if the graph wants other inputs, too.
Arrays token_inputs(const std::vector<Tokens>& rows, const Manifest& manifest);

// For each row a 0 or a 1 for each token: those that may be the answer to a question.
// Throws RequestFault if there are other numbers, and json::exception if there are no lists.
std::vector<std::vector<bool>> parse_contexts(const nlohmann::json& document);
