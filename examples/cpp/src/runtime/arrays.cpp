#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "fault.hpp"

namespace {

struct Element {
  ONNXTensorElementDataType code;
  std::size_t bytes;
};

const std::map<std::string, Element> kElements = {
    {"float32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4}}, {"float16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}},
    {"float64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8}}, {"int64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}},
    {"int32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4}},    {"bool", {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1}},
    {"int8", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1}},
};

constexpr std::uint64_t kLargest = std::uint64_t{1} << 48;  // bytes; more would overflow before it failed

const Element& element_of(const std::string& dtype) {
  const auto found = kElements.find(dtype);
  if (found == kElements.end()) throw Fault({"a type that this client does not know", "", "`" + dtype + "`"});
  return found->second;
}

// What lies before an axis: how often the axis is gone through; and how many bytes one place along it has.
struct Strides {
  Strides(const Array& array, std::size_t axis) : outer(1), inner(bytes_of(array.dtype)) {
    for (std::size_t at = 0; at < axis; ++at) outer *= static_cast<std::size_t>(array.shape[at]);
    for (std::size_t at = axis + 1; at < array.shape.size(); ++at) inner *= static_cast<std::size_t>(array.shape[at]);
  }
  std::size_t outer, inner;
};

}  // namespace

std::size_t Array::count() const {
  return static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
}

std::size_t bytes_of(const std::string& dtype) { return element_of(dtype).bytes; }

std::string dtype_of(ONNXTensorElementDataType code) {
  for (const auto& [name, type] : kElements) {
    if (type.code == code) return name;
  }
  throw Fault({"ONNX Runtime returned a type that this client does not know", "", std::to_string(code)});
}

std::string to_text(const Shape& shape) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + "]";
}

std::size_t checked_bytes(const std::string& dtype, const Shape& shape) {
  std::uint64_t bytes = bytes_of(dtype);
  for (const auto size : shape) {
    if (size < 0 || (size > 0 && bytes > kLargest / static_cast<std::uint64_t>(size))) {
      throw Fault({"a shape that no array has", "", to_text(shape)});
    }
    bytes *= static_cast<std::uint64_t>(size);
  }
  return static_cast<std::size_t>(bytes);
}

Array make_array(const std::string& dtype, const Shape& shape) {
  Array array{dtype, shape, {}};
  array.bytes.resize(checked_bytes(dtype, shape));
  return array;
}

Array int64_array(const std::vector<std::int64_t>& numbers, const Shape& shape) {
  Array array = make_array("int64", shape);
  if (array.count() != numbers.size()) {
    throw RequestFault({"rows of different lengths", "", std::to_string(numbers.size()) + " numbers", to_text(shape)});
  }
  std::memcpy(array.bytes.data(), numbers.data(), array.bytes.size());
  return array;
}

Array taken(const Array& array, std::size_t axis, const std::vector<std::size_t>& places) {
  const Strides strides(array, axis);
  const auto length = static_cast<std::size_t>(array.shape[axis]);
  Shape shape = array.shape;
  shape[axis] = static_cast<std::int64_t>(places.size());
  Array found = make_array(array.dtype, shape);
  auto* target = found.bytes.data();
  for (std::size_t outer = 0; outer < strides.outer; ++outer) {
    for (const auto place : places) {
      target = std::copy_n(array.bytes.data() + (outer * length + place) * strides.inner, strides.inner, target);
    }
  }
  return found;
}

Array joined(const std::vector<const Array*>& parts, std::size_t axis) {
  Shape shape = parts.front()->shape;
  shape[axis] = 0;
  for (const auto* part : parts) shape[axis] += part->shape[axis];
  Array found = make_array(parts.front()->dtype, shape);
  auto* target = found.bytes.data();
  const Strides strides(found, axis);
  for (std::size_t outer = 0; outer < strides.outer; ++outer) {
    for (const auto* part : parts) {
      const auto bytes = static_cast<std::size_t>(part->shape[axis]) * strides.inner;
      target = std::copy_n(part->bytes.data() + outer * bytes, bytes, target);
    }
  }
  return found;
}

Array padded(const Array& array, std::size_t axis, std::int64_t length) {
  if (array.shape[axis] >= length) return array;
  Shape shape = array.shape;
  shape[axis] = length - array.shape[axis];
  const auto zeros = make_array(array.dtype, shape);
  return joined({&array, &zeros}, axis);
}

bool is_set(const Array& array, std::size_t at) {
  const auto size = bytes_of(array.dtype);  // zero is all zeros in every type that a mask may have
  const auto* bytes = array.bytes.data() + at * size;
  return std::any_of(bytes, bytes + size, [](std::byte byte) { return byte != std::byte{0}; });
}

Ort::Value view(const Array& array) {
  static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto* bytes = const_cast<std::byte*>(array.bytes.data());  // ONNX Runtime does not write to its inputs
  return Ort::Value::CreateTensor(memory, bytes, array.bytes.size(), array.shape.data(), array.shape.size(),
                                  element_of(array.dtype).code);
}

Array copy_of(const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  Array array = make_array(dtype_of(info.GetElementType()), info.GetShape());
  if (!array.bytes.empty()) std::memcpy(array.bytes.data(), value.GetTensorRawData(), array.bytes.size());
  return array;
}
