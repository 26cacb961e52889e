// What golden texts and golden batches have in common: answers of the reference.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

// The largest deviation of an answer from the expected keys as a part of the allowed one; infinite where a label, a place or
// a key is another. Labels and places are compared where they are decided, numbers always; NaN is infinitely far away.
double worst_of_answer(nlohmann::json found, const nlohmann::json& expected, bool is_decided, double allowed);

// For each token whether it may be the answer, by the `context` of a record; empty if that is null.
std::vector<bool> golden_context(const nlohmann::json& record, std::size_t tokens);
