// What a caller hands in, held against the manifest before ONNX Runtime sees it.
#pragma once

#include <string>
#include <vector>

#include "arrays.hpp"
#include "manifest.hpp"

// Throws RequestFault if an input is missing, unknown, of a wrong type or shape, empty, or has ids out of range.
void check_inputs(const Arrays& inputs, const Manifest& manifest);

// Throws RequestFault listing every tensor that is missing, left over, of a wrong shape, or holds NaN or Inf: an
// adapter that lacks a tensor would run, mixed with the defaults of the graph.
void check_adapter(const Arrays& tensors, const Manifest& manifest, const std::string& where);

// The neutral tensors of every slot, with which the graph is the base.
Arrays neutral_tensors(const Manifest& manifest);
