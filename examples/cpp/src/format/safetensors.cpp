#include "safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "fault.hpp"
#include "json_text.hpp"

namespace {

const std::map<std::string, std::string> kNames = {{"F64", "float64"}, {"F32", "float32"}, {"F16", "float16"},
                                                   {"I64", "int64"},   {"I32", "int32"},   {"BOOL", "bool"},
                                                   {"I8", "int8"}};

using Span = std::pair<std::size_t, std::size_t>;  // where a tensor begins and ends

Span span_of(const nlohmann::json& record) {
  return {record.at("data_offsets").at(0).get<std::size_t>(), record.at("data_offsets").at(1).get<std::size_t>()};
}

// Tensors lie one behind the other, without gaps, to the end of the file.
void check_spans(std::vector<Span> spans, std::size_t size) {
  std::sort(spans.begin(), spans.end());
  std::size_t at = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != at || end < begin) throw std::out_of_range("tensors that overlap, or a gap between them");
    at = end;
  }
  if (at != size) throw std::out_of_range(at > size ? "a tensor is cut off" : "bytes are left over");
}

Array parse_tensor(const nlohmann::json& record, std::string_view body) {
  const auto name = kNames.find(record.at("dtype").get<std::string>());
  if (name == kNames.end()) throw std::out_of_range("a type that this client does not know");
  const auto shape = record.at("shape").get<Shape>();
  const auto [begin, end] = span_of(record);
  if (checked_bytes(name->second, shape) != end - begin) throw std::out_of_range("a shape that does not fit its bytes");
  Array array = make_array(name->second, shape);
  if (begin < end) std::memcpy(array.bytes.data(), body.data() + begin, end - begin);
  return array;
}

Arrays parse_tensors(std::string_view bytes) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof length) throw std::out_of_range("it is too short");
  std::memcpy(&length, bytes.data(), sizeof length);  // little-endian, as every machine that onnxruntime runs on
  if (length > bytes.size() - sizeof length) throw std::out_of_range("the header is cut off");
  auto header = parse_json(bytes.substr(sizeof length, length));
  header.erase("__metadata__");
  const auto body = bytes.substr(sizeof length + length);
  std::vector<Span> spans;
  for (const auto& record : header) spans.push_back(span_of(record));
  check_spans(spans, body.size());
  Arrays tensors;
  for (const auto& [name, record] : header.items()) tensors.emplace(name, parse_tensor(record, body));
  return tensors;
}

}  // namespace

Arrays parse_safetensors(const std::string& bytes, const std::string& where) {
  try {
    return parse_tensors(bytes);
  } catch (const std::exception& error) {  // one of ours, or one of the JSON library
    throw Fault({"is no safetensors file, or is damaged", where, error.what(), "", "get the file from its source again"});
  }
}
