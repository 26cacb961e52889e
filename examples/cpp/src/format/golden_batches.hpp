// Golden batches: requests of several rows, and the answer that the reference gave to each row alone.
#pragma once

#include <optional>

#include "engine.hpp"

// The largest deviation as a part of the allowed one, infinite where a label or a place is another; none if the bundle has
// no golden batches. Throws Fault if their file breaks its format.
std::optional<double> worst_of_batches(const Bundle& bundle, const Engine& engine);
