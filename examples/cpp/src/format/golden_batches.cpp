#include "golden_batches.hpp"

#include <algorithm>

#include "fault.hpp"
#include "golden_answers.hpp"
#include "inputs.hpp"
#include "json_text.hpp"

using nlohmann::json;

namespace {

// How many tokens a row has: those of its ids.
std::size_t tokens_of(const Arrays& inputs, const Manifest& manifest) {
  for (const auto& record : manifest.inputs) {
    if (record.role == "ids" && record.axes.size() == 2) return static_cast<std::size_t>(inputs.at(record.name).shape[1]);
  }
  return 0;
}

double worst_of_batch(const json& batch, const Engine& engine, const Manifest& manifest) {
  std::vector<Row> rows;
  for (const auto& row : known(batch, {"name", "rows"}).at("rows")) {
    known(row, {"adapter", "inputs", "context", "answer", "absolute", "decided"});
    const auto adapter = row.at("adapter").is_null() ? Choice{} : Choice{row.at("adapter").get<std::string>()};
    auto inputs = parse_row(row.at("inputs"), manifest);
    auto context = golden_context(row, tokens_of(inputs, manifest));
    rows.push_back({std::move(inputs), adapter, 1, {}, std::move(context)});
  }
  double worst = 0;
  const auto answers = engine.answer(rows);
  for (std::size_t at = 0; at < answers.size(); ++at) {
    const auto& row = batch.at("rows")[at];
    worst = std::max(worst, worst_of_answer(answers[at], row.at("answer"), value_or(row, "decided", true), row.at("absolute")));
  }
  return worst;
}

}  // namespace

std::optional<double> worst_of_batches(const Bundle& bundle, const Engine& engine) {
  const auto& path = bundle.manifest().golden_batches;
  if (path.empty()) return std::nullopt;
  try {
    const auto document = parse_json(bundle.read(path));
    check_version(known(document, {"version", "reference", "batches"}).at("version"), "golden batches");
    if (document.at("batches").empty()) throw Fault({"holds no golden batches", path});
    double worst = 0;
    for (const auto& batch : document.at("batches")) worst = std::max(worst, worst_of_batch(batch, engine, bundle.manifest()));
    return worst;
  } catch (const json::exception& error) {
    throw Fault({"holds no golden batches", path, error.what()});
  }
}
