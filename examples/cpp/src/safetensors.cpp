#include "safetensors.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

#include "fault.hpp"

namespace {

const std::map<std::string, std::string> kNames = {{"F64", "float64"}, {"F32", "float32"}, {"F16", "float16"},
                                                   {"I64", "int64"},   {"I32", "int32"},   {"BOOL", "bool"}};

Array parse_tensor(const nlohmann::json& record, const std::string& bytes, std::size_t start) {
  const auto name = kNames.find(record.at("dtype").get<std::string>());
  if (name == kNames.end()) throw std::out_of_range("a type that this client does not know");
  const auto begin = record.at("data_offsets").at(0).get<std::size_t>();
  const auto end = record.at("data_offsets").at(1).get<std::size_t>();
  Array array = make_array(name->second, record.at("shape").get<Shape>());
  if (begin > end || end > bytes.size() - start || end - begin != array.bytes.size()) {
    throw std::out_of_range("offsets that do not fit the shape");
  }
  if (begin < end) std::memcpy(array.bytes.data(), bytes.data() + start + begin, end - begin);
  return array;
}

}  // namespace

Arrays parse_safetensors(const std::string& bytes, const std::string& where) {
  try {
    std::uint64_t length = 0;
    if (bytes.size() < sizeof length) throw std::out_of_range("it is too short");
    std::memcpy(&length, bytes.data(), sizeof length);  // little-endian, as every machine that onnxruntime runs on
    if (length > bytes.size() - sizeof length) throw std::out_of_range("the header is cut off");
    const std::size_t start = sizeof length + static_cast<std::size_t>(length);
    const auto header = nlohmann::json::parse(bytes.begin() + sizeof length, bytes.begin() + start);
    Arrays tensors;
    for (const auto& [name, record] : header.items()) {
      if (name != "__metadata__") tensors.emplace(name, parse_tensor(record, bytes, start));
    }
    return tensors;
  } catch (const Fault&) {
    throw;
  } catch (const std::exception& error) {
    throw Fault({"is no safetensors file, or is damaged", where, error.what(), "", "take the file from its source again"});
  }
}
