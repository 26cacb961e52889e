// Arrays in memory of their own, and how ONNX Runtime sees them.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

using Shape = std::vector<std::int64_t>;

struct Array {
  std::string dtype;             // NumPy's name, as in the manifest: "float32", "int64", "int32", "int8", "bool"
  Shape shape;                   // row-major
  std::vector<std::byte> bytes;  // as many as dtype and shape say

  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  std::size_t count() const;
};

using Arrays = std::map<std::string, Array>;

// The bytes of an array of this type and shape. Throws Fault if there can be no such array.
std::size_t checked_bytes(const std::string& dtype, const Shape& shape);

// An array of this type and shape, all zeros.
Array make_array(const std::string& dtype, const Shape& shape);

Array int64_array(const std::vector<std::int64_t>& numbers, const Shape& shape);

std::size_t bytes_of(const std::string& dtype);
std::string dtype_of(ONNXTensorElementDataType type);
std::string to_text(const Shape& shape);

// Some places along an axis, in this order.
Array taken(const Array& array, std::size_t axis, const std::vector<std::size_t>& places);

// Arrays that are alike but for an axis, one behind the other along it.
Array joined(const std::vector<const Array*>& parts, std::size_t axis);

// Zeros after the array along an axis, up to a length.
Array padded(const Array& array, std::size_t axis, std::int64_t length);

// Whether an element is not zero.
bool is_set(const Array& array, std::size_t at);

// A value that refers to the array's memory: the array must outlive it, and keep its place.
Ort::Value view(const Array& array);

// A copy of what ONNX Runtime returned.
Array copy_of(const Ort::Value& value);
