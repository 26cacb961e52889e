#include "adapter_file.hpp"

#include <flatbuffers/flatbuffers.h>

#include <cstring>

#include "fault.hpp"

namespace fb = flatbuffers;

namespace {

constexpr std::int32_t kFormatVersion = 1;
constexpr std::int32_t kFloat = 1;

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

Array array_of(const Parameter& parameter) {
  const Shape shape(parameter.dims()->begin(), parameter.dims()->end());
  require(parameter.type() == kFloat, "`" + parameter.name()->str() + "` is not float32");
  require(checked_bytes("float32", shape) == parameter.data()->size(), "`" + parameter.name()->str() + "` is cut off");
  Array array = make_array("float32", shape);
  std::memcpy(array.bytes.data(), parameter.data()->Data(), parameter.data()->size());
  return array;
}

AdapterFile parse(const std::string& bytes) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
  require(bytes.size() < FLATBUFFERS_MAX_BUFFER_SIZE && fb::Verifier(data, bytes.size()).VerifyBuffer<File>("TORT"),
          "bytes that are no adapter file, or not all of one");
  const auto& file = *fb::GetRoot<File>(data);
  require(file.format() == kFormatVersion, "format version " + std::to_string(file.format()));
  AdapterFile found{file.model_version(), {}};
  for (const auto* parameter : *file.parameters()) {
    const bool is_new = found.tensors.emplace(parameter->name()->str(), array_of(*parameter)).second;
    require(is_new, "`" + parameter->name()->str() + "` twice");
  }
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
