// From the outputs of a row to its answer, by the task of its adapter (docs/reference/format.md, "Answers").
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "batching.hpp"
#include "manifest.hpp"

using Answer = nlohmann::ordered_json;  // its keys stay in order, and so do labels

// What a row gave.
struct RowResult {
  Choice adapter;  // that of the row, or the base head
  Head head;
  Arrays outputs;  // [1, …]: those of the base and that of the head, their tokens where the caller's arrays have them
  FittedRow row;   // as it ran
};

// The answer: "adapter", "task", and the keys of the task. Without a task, as `raw_answer`. `context` has for each token of
// a span's row whether it may be the answer.
// Throws RequestFault if a number is NaN or infinite, or a span's context is missing, does not fit or leaves no token.
Answer answer(const RowResult& result, const Manifest& manifest, const std::vector<bool>& context);

// The outputs as nested lists: "adapter", "task" (null) and "outputs". Throws RequestFault if a number is NaN or infinite.
Answer raw_answer(const RowResult& result);

// Throws RequestFault if an output holds NaN or an infinity.
void check_finite(const RowResult& result);
