// Outputs to what a caller wants to see, by the task of each row's adapter (docs/format.md, "Answers").
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "switchboard.hpp"

using Answer = nlohmann::ordered_json;        // its keys stay in order, and so do labels
using Contexts = std::vector<std::vector<bool>>;  // for each row which of its tokens may be the answer to a question

// One answer for each row. The problem type of the row's adapter decides what it holds:
//   single_label             "label", "probability", "probabilities": {label: …}
//   multi_label              "labels": [those that apply], "probabilities": {label: …}
//   token                    "tokens": [{as of single_label}, null for padding, …]
//   span                     "start", "end" (the first and the last token), "probability"
//   regression               "numbers"
//   embedding                "vector"
//   multiple_choice, ranking "score"
//   none                     "outputs": {"last_hidden_state": [[ … ]], …}, results as they are
// Without contexts, all tokens but padding may be the answer to a question.
// Throws RequestFault if a number is NaN or infinite, contexts do not fit, or no token may be the answer.
std::vector<Answer> answers(const Arrays& inputs, const Outcome& outcome, const Manifest& manifest,
                            const Contexts& contexts = {});

// An answer with the name of its adapter before it; null for the base.
Answer with_adapter(const Answer& answer, const Choice& adapter);
