// Outputs to what a caller wants to see.
#pragma once

#include <nlohmann/json.hpp>

#include "switchboard.hpp"

// One answer for each row. What the row's adapter is for decides what it holds:
//   "classes": [{"label": …, "probability": …}, …], those of a text, the likeliest first
//   "tokens":  [{"label": …, "probability": …}, null, …], the likeliest class of each token; null for padding
//   "numbers": [ … ], what a regression or an embedding gives, or logits whose classes have no names
//   "outputs": {"last_hidden_state": [[ … ]], …}, the base's outputs, without a head
// Throws Fault if a number is NaN or infinite.
nlohmann::json answers(const Arrays& inputs, const Outcome& outcome, const Manifest& manifest);
