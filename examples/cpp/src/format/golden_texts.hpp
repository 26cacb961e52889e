// Golden texts: the answers that the reference gave to texts. This client has no tokenizer: it begins with their ids.
#pragma once

#include <map>
#include <string>

#include "engine.hpp"

// For each adapter with such answers the largest deviation as a part of the allowed one, infinite where a label or a
// place is another. Throws Fault if the file of the texts breaks its format.
std::map<std::string, double> worst_of_texts(const Bundle& bundle, const Engine& engine);
