// Golden parts: all numbers of an output together show faults of an adapter that rounding hides in each of them.
#pragma once

#include "finding.hpp"
#include "golden_vectors.hpp"

// A finding for each adapter that has golden parts. Throws Fault if their file is not complete.
std::vector<Finding> check_parts(const Bundle& bundle, const GraphRun& graph);
