// ONNX Runtime's own adapter files, `.onnx_adapter`: a flatbuffer with named tensors and the number of the graph that
// they were made for. ONNX Runtime compares that number with nothing, and does not say what is in a file.
#pragma once

#include <cstdint>
#include <string>

#include "arrays.hpp"

// Its tensors are float32, whatever they were in the file.
struct AdapterFile {
  std::int32_t model_version = 0;
  Arrays tensors;
  bool is_widened = false;  // from float16 or int8, which ONNX Runtime itself does not do
};

// What the bytes of a file hold. Throws RequestFault if they are no such file, or are damaged; `where` names them.
AdapterFile parse_adapter_file(const std::string& bytes, const std::string& where);
