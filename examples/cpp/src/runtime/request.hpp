// What a caller hands in, held against the manifest before ONNX Runtime sees it.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "manifest.hpp"

// Throws RequestFault if an input is missing, unknown, of a wrong type or shape, empty, or has ids out of range. The axes
// `free`, by `axis_key`, may have any length.
void check_inputs(const Arrays& inputs, const Manifest& manifest, const std::set<std::string>& free = {});

// Throws RequestFault listing every tensor that is missing, left over, of a wrong shape, or holds NaN or Inf: an
// adapter that lacks a tensor would run, mixed with the defaults of the graph.
void check_adapter(const Arrays& tensors, const Manifest& manifest, const std::string& where);

// The input of this name. Throws RequestFault if the graph has none.
const InputRecord& input_record(const Manifest& manifest, const std::string& name);

// The caller's description of an adapter's head, which the adapter file does not describe. Labels without a type select
// the classification that the head can do; without either, the meaning of its results is unknown.
struct Claim {
  std::string type;  // the problem type; empty if it is not said
  std::vector<std::string> labels;
};

// The head that an adapter fills, as its tensors show it, with the task that is said.
// Throws RequestFault if it fills several, or its head is none for the task.
Head head_of(const Arrays& tensors, const Manifest& manifest, const Claim& claim, const std::string& where);

// Throws RequestFault if the tensors of an adapter of the bundle are none of the head that its record names.
void check_head(const Arrays& tensors, const Manifest& manifest, const Head& head, const std::string& where);

// Throws RequestFault if an adapter file was made for another base, or for a graph with other slots or activations.
void check_model_version(std::int32_t found, const Manifest& manifest, const std::string& where);

using Weights = std::map<std::string, float>;  // what the members of a fusion weigh, by their names

// The weights of a fusion that a call gives, [rows, members], once for all rows of the batch or once for each.
// Throws RequestFault if it is no fusion, or a member has no finite weight: one left out would be a guess.
Array weight_tensor(const std::optional<MixRecord>& mix, const std::vector<Weights>& rows, const std::string& where);

// By the names of graphs at sites, the parameters by which what they add is made larger or smaller; none where there are
// none.
using StrengthParameters = std::map<std::string, std::optional<std::vector<std::string>>>;

// What the metadata of a graph with slots says of them. Throws RequestFault if it says nothing.
StrengthParameters strength_parameters(const std::optional<std::string>& metadata, const Manifest& manifest);

// Those tensors of an adapter that are others where what it adds is `strength` times as large; heads stay as they are.
// Throws RequestFault if the adapter has no strength: what it computes is no sum with such a part.
Arrays scaled_tensors(const Arrays& tensors, const Manifest& manifest, const StrengthParameters& parameters,
                      double strength, const std::string& where);

// Throws RequestFault if a strength is not from −1000 to 1000: more is no request, but an error of units.
void check_strength(double strength);

// Whether a tensor is the neutral default of its slot.
bool is_neutral(const Array& array, const SlotRecord& slot);

// The neutral tensors of every slot, with which the graph is the base.
Arrays neutral_tensors(const Manifest& manifest);
