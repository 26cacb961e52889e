// The bundle compared with its golden vectors, golden parts and recorded runs, in every way that this machine can run it,
// and with its golden texts and golden batches, by the way that users' rows take.
#pragma once

#include <vector>

#include "engine.hpp"
#include "finding.hpp"

std::vector<Finding> self_check(const Bundle& bundle, const Engine& engine);
