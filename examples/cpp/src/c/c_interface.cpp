#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>

#include "adapter_export.h"
#include "answers.hpp"
#include "fault.hpp"
#include "self_check.hpp"

struct ae_list {
  std::vector<std::string> texts;
};

struct ae_result {
  Outcome outcome;
  std::vector<Answer> answers;
  std::vector<std::string> names;  // of the outputs
};

struct ae_bundle {
  ae_bundle(const char* folder, int given_threads, std::size_t prefix_bytes)
      : bundle(folder), threads(given_threads), switchboard(bundle, "slots", Feeding::plain, threads),
        fanout(prefix_bytes > 0 ? std::make_unique<Fanout>(bundle, threads, prefix_bytes) : nullptr) {}

  // Whether all rows are in the graphs whose adapters are rows.
  bool holds(const std::vector<ScaledAdapter>& rows) const {
    return std::all_of(rows.begin(), rows.end(), [&](const ScaledAdapter& row) {
      return !row.name || (row.strength == 1 && switchboard.is_built_in(*row.name));
    });
  }

  Outcome run(const Arrays& inputs, const std::vector<ScaledAdapter>& rows) const {
    std::vector<Choice> names;
    for (const auto& row : rows) names.push_back(row.name);
    if (fanout && holds(rows)) return fanout->run(inputs, names);
    const bool is_mixed = std::set<Choice>(names.begin(), names.end()).size() > 1;
    if (!is_mixed || !bundle.manifest().graphs.count("bank") || !holds(rows)) return switchboard.run(inputs, rows);
    std::call_once(bank_is_open, [&] { bank = std::make_unique<Bank>(bundle, threads); });
    return bank->run(inputs, names);
  }

  Bundle bundle;
  int threads;
  Switchboard switchboard;
  std::unique_ptr<Fanout> fanout;
  mutable std::once_flag bank_is_open;  // by the first call that needs it: its session holds the base's weights again
  mutable std::unique_ptr<Bank> bank;
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

Array array_of(const ae_array& given) {
  const auto where = "`" + std::string(&there(given.name, "name")) + "`";
  if (given.rank > 0) there(given.shape, "shape");
  const Shape shape(given.shape, given.shape + given.rank);
  const std::string dtype = &there(given.dtype, "dtype");
  if (dtype != "int64" && dtype != "int32" && dtype != "float32" && dtype != "bool") {
    throw RequestFault({"an input has a wrong type", where, dtype, "int64, int32, float32 or bool"});
  }
  const bool is_whole = std::all_of(shape.begin(), shape.end(), [](std::int64_t size) { return size > 0; });
  if (!is_whole || checked_bytes(dtype, shape) != given.bytes) {
    throw RequestFault({"bytes and shape differ", where, std::to_string(given.bytes) + " bytes", dtype + " " + to_text(shape)});
  }
  Array array = make_array(dtype, shape);
  std::memcpy(array.bytes.data(), &there(static_cast<const std::byte*>(given.data), "data"), given.bytes);
  return array;
}

Arrays arrays_of(const ae_array* inputs, std::size_t count) {
  there(inputs, "inputs");
  Arrays found;
  for (std::size_t at = 0; at < count; ++at) {
    if (found.emplace(&there(inputs[at].name, "name"), array_of(inputs[at])).second) continue;
    throw RequestFault({"an input twice", "`" + std::string(inputs[at].name) + "`"});
  }
  return found;
}

std::vector<ScaledAdapter> rows_of(const ae_choice* choices, std::size_t count, std::size_t rows, const Manifest& manifest) {
  there(choices, "choices");
  if (count != 1 && count != rows) {
    throw RequestFault({"not one adapter for each row", "", std::to_string(count), std::to_string(rows)});
  }
  std::vector<ScaledAdapter> found;
  for (std::size_t row = 0; row < rows; ++row) {
    const auto& [adapter, strength] = choices[count == 1 ? 0 : row];
    found.push_back({manifest.answering(adapter == nullptr ? Choice{} : Choice{adapter}), strength});
  }
  return found;
}

Contexts contexts_of(const std::uint8_t* context, std::size_t bytes, std::size_t rows) {
  if (context == nullptr) return {};
  const auto is_wrong = [](std::uint8_t byte) { return byte > 1; };
  if (bytes == 0 || bytes % rows != 0 || std::any_of(context, context + bytes, is_wrong)) {
    throw RequestFault({"a context is no 0 or 1 for each token of each row", "`context`", std::to_string(bytes) + " bytes"});
  }
  Contexts found;
  const std::size_t width = bytes / rows;
  for (const auto* row = context; row != context + bytes; row += width) found.emplace_back(row, row + width);
  return found;
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
    const auto& opened = there(bundle, "bundle").bundle;
    opened.check_nothing_else();
    const auto found = self_check(opened);
    there(findings, "findings") = given(document(found).dump());
    check(found);
  });
}

ae_status ae_adapters(const ae_bundle* bundle, ae_list** names, char** error) {
  return guarded(error, [&] { there(names, "names") = new ae_list{there(bundle, "bundle").switchboard.adapters()}; });
}

ae_status ae_task(const ae_bundle* bundle, const char* adapter, char** type, ae_list** labels, char** error) {
  return guarded(error, [&] {
    there(type, "type");
    there(labels, "labels");
    const auto task = there(bundle, "bundle").switchboard.task(&there(adapter, "adapter"));
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
    there(bundle, "bundle").switchboard.load(&there(name, "name"), std::string(data, size), claim);
  });
}

ae_status ae_unload(ae_bundle* bundle, const char* name, char** error) {
  return guarded(error, [&] { there(bundle, "bundle").switchboard.unload(&there(name, "name")); });
}

ae_status ae_run(const ae_bundle* bundle, const ae_array* inputs, std::size_t input_count, const ae_choice* choices,
                 std::size_t choice_count, const std::uint8_t* context, std::size_t context_bytes, ae_result** result,
                 char** error) {
  return guarded(error, [&] {
    there(result, "result");
    const auto& manifest = there(bundle, "bundle").bundle.manifest();
    const auto arrays = arrays_of(inputs, input_count);
    check_inputs(arrays, manifest);
    const auto batch = static_cast<std::size_t>(arrays.begin()->second.shape.front());
    const auto rows = rows_of(choices, choice_count, batch, manifest);
    auto found = std::make_unique<ae_result>();
    found->outcome = bundle->run(arrays, rows);
    found->answers = answers(arrays, found->outcome, manifest, contexts_of(context, context_bytes, batch));
    for (std::size_t row = 0; row < batch; ++row) found->answers[row] = with_adapter(found->answers[row], rows[row].name);
    for (const auto& [name, _] : found->outcome.outputs) found->names.push_back(name);
    *result = found.release();
  });
}

std::size_t ae_result_rows(const ae_result* result) { return result == nullptr ? 0 : result->answers.size(); }

ae_status ae_result_answer(const ae_result* result, std::size_t row, char** json, char** error) {
  return guarded(error, [&] {
    const auto& found = there(result, "result").answers;
    if (row >= found.size()) throw RequestFault({"no such row", "", std::to_string(row), "below " + std::to_string(found.size())});
    there(json, "json") = result->outcome.heads[row].task ? given(found[row].dump()) : nullptr;
  });
}

std::size_t ae_result_outputs(const ae_result* result) { return result == nullptr ? 0 : result->names.size(); }

ae_status ae_result_output(const ae_result* result, std::size_t at, ae_array* output, char** error) {
  return guarded(error, [&] {
    const auto& names = there(result, "result").names;
    if (at >= names.size()) throw RequestFault({"no such output", "", std::to_string(at), "below " + std::to_string(names.size())});
    const auto& array = result->outcome.outputs.at(names[at]);
    there(output, "output") = {names[at].c_str(), array.dtype.c_str(), array.shape.data(), array.shape.size(),
                               array.bytes.data(), array.bytes.size()};
  });
}

void ae_result_free(ae_result* result) { delete result; }

ae_status ae_prefix_counts(const ae_bundle* bundle, ae_counts* counts, char** error) {
  return guarded(error, [&] {
    const auto& fanout = there(bundle, "bundle").fanout;
    const auto found = fanout ? fanout->prefixes() : PrefixCounts{};
    there(counts, "counts") = {found.hits, found.loads, found.evictions, found.resident};
  });
}

std::size_t ae_list_size(const ae_list* list) { return list == nullptr ? 0 : list->texts.size(); }

const char* ae_list_at(const ae_list* list, std::size_t at) {
  return at < ae_list_size(list) ? list->texts[at].c_str() : nullptr;
}

void ae_list_free(ae_list* list) { delete list; }

void ae_free(char* text) { std::free(text); }
