// The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors.
#pragma once

#include <string>

#include "arrays.hpp"

// The tensors in the bytes of a file. Throws Fault if the bytes break the format; `where` names them in messages.
Arrays parse_safetensors(const std::string& bytes, const std::string& where);
