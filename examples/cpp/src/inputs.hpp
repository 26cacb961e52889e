// Inputs that come as JSON.
#pragma once

#include <nlohmann/json.hpp>

#include "arrays.hpp"
#include "manifest.hpp"

// Nested lists by name, such as {"input_ids": [[101, 102]]}, as arrays of the types that the manifest names.
// Throws RequestFault if they do not fit the inputs of the graph, and json::exception if they are no lists at all.
Arrays parse_inputs(const nlohmann::json& document, const Manifest& manifest);
