// Decides which rows share a call, and which are padded: docs/reference/format.md, "What may share a call". Nothing else
// in this client does.
//
// Here rows share a call only if they have the same lengths. A row is padded only to a length that `lengths` allows: on a
// CPU a call costs about as much as 10 tokens, so that padding rows to each other would save nothing.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <string>

#include "arrays.hpp"
#include "manifest.hpp"

// Whether these tensors of an adapter, `others` replacing those of the same names, act in a graph of `counts_padding`.
bool counts_padding(const Manifest& manifest, const Arrays& tensors, const Arrays& others = {});

// Whether rows may share a call at all.
bool shares_calls(const Manifest& manifest);

// What runs of an axis that a row has: `before` places are removed at its start, the next `kept` ones run, and padding
// follows them.
struct Cut {
  std::size_t before, kept, given;  // `given`: the length in the caller's array
};

// A row as it runs.
struct FittedRow {
  Arrays inputs;
  std::map<std::string, Cut> cuts;  // by `axis_key`
};

// The axes of tokens, those of ids and masks, by `axis_key`.
std::set<std::string> token_axis_keys(const Manifest& manifest);

// Remove padding from the arrays of a row, [1, …], and pad them to a length that the base takes.
// Throws RequestFault if the row has no such length and may not be padded.
FittedRow fitted(Arrays inputs, const Manifest& manifest, bool may_pad);

// An output [1, …] with its tokens where the caller's arrays have them: without the padding that `fitted` added, and 0 where
// it removed some.
Array as_given(const Array& output, const OutputRecord& record, const FittedRow& row);
