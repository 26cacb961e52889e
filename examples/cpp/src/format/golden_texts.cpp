#include "golden_texts.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include "fault.hpp"
#include "golden_answers.hpp"
#include "inputs.hpp"
#include "json_text.hpp"

using nlohmann::json;

namespace {

// None if there are no answers: the reference may be unable to give any.
std::optional<double> worst_of_set(const json& set, const Engine& engine, const Manifest& manifest) {
  const Choice adapter = set.at("adapter").get<std::string>();
  std::vector<Row> rows;
  std::vector<const json*> texts;
  for (const auto& text : set.at("texts")) {
    if (text.at("answer").is_null()) continue;
    const Tokens tokens{text.at("ids"), text.at("token_type_ids").get<std::vector<std::int64_t>>()};
    rows.push_back({token_inputs(tokens, manifest, engine.task(adapter)), adapter, 1, {}, golden_context(text, tokens.ids.size())});
    texts.push_back(&text);
  }
  std::optional<double> worst;
  const auto answers = engine.answer(rows);
  for (std::size_t at = 0; at < answers.size(); ++at) {
    const auto& text = *texts[at];
    worst = std::max(worst.value_or(0), worst_of_answer(answers[at], text.at("answer"), text.at("decided"), set.at("absolute")));
  }
  return worst;
}

}  // namespace

std::map<std::string, double> worst_of_texts(const Bundle& bundle, const Engine& engine) {
  const auto& manifest = bundle.manifest();
  std::map<std::string, double> found;
  std::set<std::string> seen;
  if (manifest.golden_texts.empty()) return found;
  try {
    const auto document = parse_json(bundle.read(manifest.golden_texts));
    check_version(document.at("version"), "golden texts");
    if (document.at("digest") != manifest.tokenizer_digest) {
      throw Fault({"was made with another tokenizer", manifest.golden_texts, document.at("digest"), manifest.tokenizer_digest});
    }
    for (const auto& set : document.at("sets")) {
      if (set.at("adapter").is_null()) continue;  // ids without answers
      const auto worst = worst_of_set(set, engine, manifest);
      if (worst) found.emplace(set.at("adapter"), *worst);
      seen.insert(set.at("adapter").get<std::string>());
    }
  } catch (const json::exception& error) {
    throw Fault({"holds no golden texts", manifest.golden_texts, error.what()});
  }
  for (const auto& record : manifest.adapters) {
    if (!record.head.task || seen.count(record.name)) continue;
    throw Fault({"has no texts of an adapter", manifest.golden_texts, "", "some of `" + record.name + "`"});
  }
  return found;
}
