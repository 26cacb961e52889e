// Sketches of wide outputs, and inputs made from a seed: golden data contain neither in full
// (docs/reference/format.md, "Sketches").
#pragma once

#include <string>

#include "arrays.hpp"
#include "manifest.hpp"

// The sketch of a float32 output: for each of its rows the largest numbers, chosen columns, and signed sums over all of
// them. NaN and infinity stay in it. Throws Fault if the output has no such rows; `name` names it in messages.
Array sketch(const Array& output, const SketchRecord& record, const std::string& name);

// An input that a seed and a shape describe, as int64: multiples of 1/64 in [-2, 2). Throws Fault if there can be no such
// input; `where` names the tensor in messages.
Array filled(const Array& seed_and_shape, const InputRecord& input, const std::string& where);
