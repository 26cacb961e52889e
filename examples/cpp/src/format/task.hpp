// The contract between a text and the answer of an adapter (docs/reference/format.md, "Tasks").
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

// How text becomes ids is kept only in `record`: this client has no tokenizer.
struct Task {
  std::string type;                 // `single_label`, `multi_label`, `multiple_choice`, `token`, `span`, …
  std::vector<std::string> labels;  // in the order of the logits; of single_label, multi_label and token
  std::string activation;           // `softmax`, `sigmoid` or `identity`
  std::vector<double> thresholds;   // of multi_label: for each label the probability from which on it applies
  std::string input = "text";       // what a row is: `text`, `pair`, `image` or `audio`
  nlohmann::ordered_json record;    // that of the manifest, without the keys that have their default
};

// The record with everything that it leaves out; `where` names it in messages. Throws RequestFault if it is none.
Task parse_task(const nlohmann::json& record, const std::string& where);

// A task of which the type and the labels are known. Throws RequestFault if there is no such type, or it has no such labels.
Task make_task(const std::string& type, const std::vector<std::string>& labels, const std::string& where);

// What a head must give to do tasks of a type: `logits`, `token_logits`, `embedding` or `token_embeddings`.
std::string result_of(const std::string& type);

// How many numbers it must give along its last axis; any number if 0.
std::size_t width_of(const Task& task);
