#include "adapter_file.hpp"

#include <flatbuffers/flatbuffers.h>

#include <cmath>
#include <cstring>

#include "fault.hpp"

namespace fb = flatbuffers;

namespace {

constexpr std::int32_t kFormatVersion = 1;
constexpr std::int32_t kFloat = 1, kInt8 = 3, kFloat16 = 10;  // the types of ONNX
const std::string kScale = ".scale";                          // behind the name of an int8 tensor, in that of its factors

// What `flatc` makes of onnxruntime/lora/adapter_format/adapter_schema.fbs, as far as it is needed.
struct Parameter : private fb::Table {
  const fb::String* name() const { return GetPointer<const fb::String*>(4); }
  const fb::Vector<std::int64_t>* dims() const { return GetPointer<const fb::Vector<std::int64_t>*>(6); }
  std::int32_t type() const { return GetField<std::int32_t>(8, 0); }
  const fb::Vector<std::uint8_t>* data() const { return GetPointer<const fb::Vector<std::uint8_t>*>(10); }

  bool Verify(fb::Verifier& verifier) const {
    return VerifyTableStart(verifier) && VerifyOffsetRequired(verifier, 4) && verifier.VerifyString(name()) &&
           VerifyOffsetRequired(verifier, 6) && verifier.VerifyVector(dims()) &&
           VerifyField<std::int32_t>(verifier, 8, 4) && VerifyOffsetRequired(verifier, 10) &&
           verifier.VerifyVector(data()) && verifier.EndTable();
  }
};

struct File : private fb::Table {
  std::int32_t format() const { return GetField<std::int32_t>(4, 0); }
  std::int32_t model_version() const { return GetField<std::int32_t>(8, 0); }
  const fb::Vector<fb::Offset<Parameter>>* parameters() const {
    return GetPointer<const fb::Vector<fb::Offset<Parameter>>*>(10);
  }

  bool Verify(fb::Verifier& verifier) const {
    return VerifyTableStart(verifier) && VerifyField<std::int32_t>(verifier, 4, 4) &&
           VerifyField<std::int32_t>(verifier, 8, 4) && VerifyOffsetRequired(verifier, 10) &&
           verifier.VerifyVector(parameters()) && verifier.VerifyVectorOfTables(parameters()) && verifier.EndTable();
  }
};

void require(bool good, const std::string& what) {
  if (!good) throw std::runtime_error(what);
}

// A float16 as the same number in float32 (IEEE 754).
float widened(std::uint16_t half) {
  const int exponent = half >> 10 & 0x1F, mantissa = half & 0x3FF;
  const float size = exponent == 0x1F ? (mantissa ? NAN : INFINITY)
                     : exponent       ? std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25)
                                      : std::ldexp(static_cast<float>(mantissa), -24);
  return half >> 15 ? -size : size;
}

// The tensor in float32; int8 without its scale.
Array array_of(const Parameter& parameter) {
  const Shape shape(parameter.dims()->begin(), parameter.dims()->end());
  const auto type = parameter.type();
  require(type == kFloat || type == kFloat16 || type == kInt8,
          "`" + parameter.name()->str() + "` is not float32, float16 or int8");
  const auto* bytes = parameter.data()->Data();
  const std::size_t count = checked_bytes("float32", shape) / sizeof(float);
  const std::size_t size = type == kFloat ? sizeof(float) : type == kFloat16 ? sizeof(std::uint16_t) : 1;
  require(count * size == parameter.data()->size(), "`" + parameter.name()->str() + "` is cut off");
  Array array = make_array("float32", shape);
  if (type == kFloat) std::memcpy(array.bytes.data(), bytes, count * size);
  for (std::size_t at = 0; type == kInt8 && at < count; ++at) array.data<float>()[at] = static_cast<std::int8_t>(bytes[at]);
  for (std::size_t at = 0; type == kFloat16 && at < count; ++at) {
    std::uint16_t half;
    std::memcpy(&half, bytes + at * sizeof half, sizeof half);
    array.data<float>()[at] = widened(half);
  }
  return array;
}

// Multiplies integers by the factors for their places along the last axis, [1, ..., out]; that is exact.
void scale(Array& array, const Array& factors) {
  Shape shape(array.shape.size(), 1);
  if (!shape.empty()) shape.back() = array.shape.back();
  require(factors.shape == shape, "a scale of another shape than its tensor needs");
  const std::size_t count = array.bytes.size() / sizeof(float), out = factors.bytes.size() / sizeof(float);
  for (std::size_t at = 0; at < count; ++at) array.data<float>()[at] *= factors.data<float>()[at % out];
}

AdapterFile parse(const std::string& bytes) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
  require(bytes.size() < FLATBUFFERS_MAX_BUFFER_SIZE && fb::Verifier(data, bytes.size()).VerifyBuffer<File>("TORT"),
          "bytes that are no adapter file, or not all of one");
  const auto& file = *fb::GetRoot<File>(data);
  require(file.format() == kFormatVersion, "format version " + std::to_string(file.format()));
  AdapterFile found{file.model_version(), {}};
  std::vector<std::string> integers;
  for (const auto* parameter : *file.parameters()) {
    const auto name = parameter->name()->str();
    require(found.tensors.emplace(name, array_of(*parameter)).second, "`" + name + "` twice");
    if (parameter->type() == kInt8) integers.push_back(name);
    found.is_widened |= parameter->type() != kFloat;
  }
  for (const auto& name : integers) {
    const auto factors = found.tensors.find(name + kScale);
    require(factors != found.tensors.end(), "`" + name + "` has no scale");
    scale(found.tensors.at(name), factors->second);
  }
  for (const auto& name : integers) found.tensors.erase(name + kScale);
  return found;
}

}  // namespace

AdapterFile parse_adapter_file(const std::string& bytes, const std::string& where) {
  try {
    return parse(bytes);
  } catch (const std::runtime_error& error) {
    throw RequestFault({"is no ONNX Runtime adapter file, or is damaged", where, error.what(), "",
                        "give an `.onnx_adapter` file that was built for this bundle"});
  }
}
