#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>

#include "adapter_export.h"
#include "engine.hpp"
#include "fault.hpp"
#include "self_check.hpp"

struct ae_list {
  std::vector<std::string> texts;
};

struct ae_result {
  std::vector<RowResult> rows;
  std::vector<std::optional<Answer>> answers;  // of the rows with a task; the others' outputs become text where it is asked for
};

struct ae_bundle {
  ae_bundle(const char* folder, int given_threads, std::size_t given_prefix_bytes)
      : bundle(folder), threads(given_threads), prefix_bytes(given_prefix_bytes), engine(bundle, threads, prefix_bytes) {}

  Bundle bundle;
  int threads;
  std::size_t prefix_bytes;
  Engine engine;
};

namespace {

char* text_of(const std::string& text) {
  auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy != nullptr) std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

char* given(const std::string& text) {
  auto* copy = text_of(text);
  if (copy == nullptr) throw std::bad_alloc();
  return copy;
}

ae_status failed(ae_status status, const char* what, char** error) {
  if (error != nullptr) *error = text_of(what);
  return status;
}

// Nothing that is thrown may leave a function of C.
template <typename Work>
ae_status guarded(char** error, Work work) noexcept {
  if (error != nullptr) *error = nullptr;
  try {
    work();
    return AE_OK;
  } catch (const RequestFault& fault) {
    return failed(AE_REQUEST, fault.what(), error);
  } catch (const Fault& fault) {
    return failed(AE_BUNDLE, fault.what(), error);
  } catch (const std::exception& other) {
    return failed(AE_INTERNAL, other.what(), error);
  } catch (...) {
    return failed(AE_INTERNAL, "an exception of an unknown kind", error);
  }
}

template <typename T>
T& there(T* pointer, const char* name) {
  if (pointer == nullptr) throw RequestFault({"is NULL", std::string("`") + name + "`"});
  return *pointer;
}

// As a row, [1, …].
Array array_of(const ae_array& given) {
  const auto where = "`" + std::string(&there(given.name, "name")) + "`";
  if (given.rank > 0) there(given.shape, "shape");
  Shape shape(given.shape, given.shape + given.rank);
  const std::string dtype = &there(given.dtype, "dtype");
  if (dtype != "int64" && dtype != "int32" && dtype != "float32" && dtype != "bool") {
    throw RequestFault({"an input has a wrong type", where, dtype, "int64, int32, float32 or bool"});
  }
  const bool is_whole = std::all_of(shape.begin(), shape.end(), [](std::int64_t size) { return size > 0; });
  if (!is_whole || checked_bytes(dtype, shape) != given.bytes) {
    throw RequestFault({"bytes and shape differ", where, std::to_string(given.bytes) + " bytes", dtype + " " + to_text(shape)});
  }
  shape.insert(shape.begin(), 1);
  Array array = make_array(dtype, shape);
  std::memcpy(array.bytes.data(), &there(static_cast<const std::byte*>(given.data), "data"), given.bytes);
  return array;
}

Row row_of(const ae_row& given, const Manifest& manifest) {
  Row row;
  if (given.input_count > 0) there(given.inputs, "inputs");
  for (std::size_t at = 0; at < given.input_count; ++at) {
    const auto& input = given.inputs[at];
    if (row.inputs.emplace(&there(input.name, "name"), array_of(input)).second) continue;
    throw RequestFault({"an input twice", "`" + std::string(input.name) + "`"});
  }
  check_inputs(row.inputs, manifest);
  if (given.adapter != nullptr) row.adapter = given.adapter;
  row.strength = given.strength;
  if (given.weight_count > 0) there(given.weights, "weights");
  for (std::size_t at = 0; at < given.weight_count; ++at) {
    const auto& [member, weight] = given.weights[at];
    if (row.weights.emplace(&there(member, "member"), static_cast<float>(weight)).second) continue;
    throw RequestFault({"a member twice", "`" + std::string(member) + "`"});
  }
  if (given.context_size > 0) {
    const auto* context = &there(given.context, "context");
    if (std::any_of(context, context + given.context_size, [](std::uint8_t byte) { return byte > 1; })) {
      throw RequestFault({"a context has a byte that is neither 0 nor 1", "`context`"});
    }
    row.context.assign(context, context + given.context_size);
  }
  return row;
}

const RowResult& row_at(const ae_result& result, std::size_t row) {
  if (row < result.rows.size()) return result.rows[row];
  throw RequestFault({"no such row", "", std::to_string(row), "below " + std::to_string(result.rows.size())});
}

}  // namespace

ae_status ae_open(const char* folder, std::int32_t threads, std::uint64_t prefix_bytes, ae_bundle** bundle, char** error) {
  return guarded(error, [&] {
    if (threads < 1) throw RequestFault({"is no number of threads", "`threads`", std::to_string(threads), "1 or more"});
    there(bundle, "bundle") = new ae_bundle(&there(folder, "folder"), threads, prefix_bytes);
  });
}

void ae_close(ae_bundle* bundle) { delete bundle; }

ae_status ae_verify(const ae_bundle* bundle, char** findings, char** error) {
  return guarded(error, [&] {
    const auto& opened = there(bundle, "bundle");
    opened.bundle.check_nothing_else();
    // an engine of its own: adapters of the bundle may have been unloaded from the caller's
    const auto found = self_check(opened.bundle, Engine(opened.bundle, opened.threads, opened.prefix_bytes));
    there(findings, "findings") = given(document(found).dump());
    check(found);
  });
}

ae_status ae_adapters(const ae_bundle* bundle, ae_list** names, char** error) {
  return guarded(error, [&] { there(names, "names") = new ae_list{there(bundle, "bundle").engine.adapters().names()}; });
}

ae_status ae_task(const ae_bundle* bundle, const char* adapter, char** type, ae_list** labels, char** error) {
  return guarded(error, [&] {
    there(type, "type");
    there(labels, "labels");
    const auto task = there(bundle, "bundle").engine.task(&there(adapter, "adapter"));
    auto names = std::make_unique<ae_list>(ae_list{task ? task->labels : std::vector<std::string>{}});
    *type = task ? given(task->type) : nullptr;
    *labels = names.release();
  });
}

ae_status ae_load(ae_bundle* bundle, const char* name, const void* bytes, std::size_t size, const char* type,
                  const char* const* labels, std::size_t label_count, char** error) {
  return guarded(error, [&] {
    Claim claim{type == nullptr ? "" : type, {}};
    if (label_count > 0) there(labels, "labels");
    for (std::size_t at = 0; at < label_count; ++at) claim.labels.emplace_back(&there(labels[at], "labels"));
    const auto* data = &there(static_cast<const char*>(bytes), "bytes");
    there(bundle, "bundle").engine.adapters().load(&there(name, "name"), std::string(data, size), claim);
  });
}

ae_status ae_unload(ae_bundle* bundle, const char* name, char** error) {
  return guarded(error, [&] { there(bundle, "bundle").engine.adapters().unload(&there(name, "name")); });
}

ae_status ae_run(const ae_bundle* bundle, const ae_row* rows, std::size_t row_count, ae_result** result, char** error) {
  return guarded(error, [&] {
    there(result, "result");
    const auto& opened = there(bundle, "bundle");
    if (row_count == 0) throw RequestFault({"a request has no rows"});
    there(rows, "rows");
    const auto& manifest = opened.bundle.manifest();
    std::vector<Row> asked;
    for (std::size_t row = 0; row < row_count; ++row) {
      asked.push_back(within_row(row, row_count, [&] { return row_of(rows[row], manifest); }));
    }
    auto found = std::make_unique<ae_result>(ae_result{opened.engine.run(asked), {}});
    for (std::size_t row = 0; row < row_count; ++row) {
      within_row(row, row_count, [&] {
        const auto& own = found->rows[row];
        check_finite(own);
        found->answers.push_back(own.head.task ? std::optional(answer(own, manifest, asked[row].context)) : std::nullopt);
      });
    }
    *result = found.release();
  });
}

std::size_t ae_result_rows(const ae_result* result) { return result == nullptr ? 0 : result->rows.size(); }

ae_status ae_result_answer(const ae_result* result, std::size_t row, char** json, char** error) {
  return guarded(error, [&] {
    const auto& found = row_at(there(result, "result"), row);
    there(json, "json") = given((result->answers[row] ? *result->answers[row] : raw_answer(found)).dump());
  });
}

std::size_t ae_result_outputs(const ae_result* result, std::size_t row) {
  return row < ae_result_rows(result) ? result->rows[row].outputs.size() : 0;
}

ae_status ae_result_output(const ae_result* result, std::size_t row, std::size_t at, ae_array* output, char** error) {
  return guarded(error, [&] {
    const auto& outputs = row_at(there(result, "result"), row).outputs;
    if (at >= outputs.size()) throw RequestFault({"no such output", "", std::to_string(at), "below " + std::to_string(outputs.size())});
    const auto& [name, array] = *std::next(outputs.begin(), static_cast<std::ptrdiff_t>(at));
    there(output, "output") = {name.c_str(), array.dtype.c_str(), array.shape.data() + 1, array.shape.size() - 1,
                               array.bytes.data(), array.bytes.size()};
  });
}

void ae_result_free(ae_result* result) { delete result; }

ae_status ae_prefix_counts(const ae_bundle* bundle, ae_counts* counts, char** error) {
  return guarded(error, [&] {
    const auto found = there(bundle, "bundle").engine.prefixes();
    there(counts, "counts") = {found.hits, found.loads, found.evictions, found.resident};
  });
}

std::size_t ae_list_size(const ae_list* list) { return list == nullptr ? 0 : list->texts.size(); }

const char* ae_list_at(const ae_list* list, std::size_t at) {
  return at < ae_list_size(list) ? list->texts[at].c_str() : nullptr;
}

void ae_list_free(ae_list* list) { delete list; }

void ae_free(char* text) { std::free(text); }
