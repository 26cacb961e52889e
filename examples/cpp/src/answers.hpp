// What a caller gets: one answer for each row of a batch, of the outputs that mean something for its adapter.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "switchboard.hpp"

// For each row {"adapter", "outputs": {name: numbers}}, and a `label`, or `labels` of tokens, for those that classify.
// An adapter with a head gives the result of that alone, any other the outputs of the base.
// Throws Fault if a number is NaN or infinite.
nlohmann::json answers(const Arrays& inputs, const Arrays& outputs, const std::vector<Choice>& adapters,
                       const std::vector<Head>& heads, const Manifest& manifest);
