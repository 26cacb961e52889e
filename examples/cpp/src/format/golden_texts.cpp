#include "golden_texts.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <set>

#include "answers.hpp"
#include "fault.hpp"
#include "inputs.hpp"
#include "json_text.hpp"
#include "switchboard.hpp"

using nlohmann::json;

namespace {

constexpr double kUnequal = std::numeric_limits<double>::infinity();

// How far an answer is from the expected one. Labels and places are compared where they are decided, that is where no
// other choice is nearer than rounding; numbers always.
double deviation(const json& found, const json& expected, bool is_decided) {
  if (found.is_number_float() && expected.is_number()) {
    const double difference = std::abs(found.get<double>() - expected.get<double>());
    return std::isnan(difference) ? kUnequal : difference;
  }
  if (found.is_object() && expected.is_object() && found.size() == expected.size()) {
    double worst = 0;
    for (const auto& [key, value] : expected.items()) {
      worst = std::max(worst, found.contains(key) ? deviation(found.at(key), value, is_decided) : kUnequal);
    }
    return worst;
  }
  const auto is_name = [](const json& each) { return each.is_string(); };
  const bool are_names = found.is_array() && (std::any_of(found.begin(), found.end(), is_name) ||
                                              std::any_of(expected.begin(), expected.end(), is_name));
  if (found.is_array() && expected.is_array() && found.size() == expected.size() && !are_names) {
    double worst = 0;
    for (std::size_t at = 0; at < found.size(); ++at) worst = std::max(worst, deviation(found[at], expected[at], is_decided));
    return worst;
  }
  const bool is_choice = are_names || is_name(found) || found.is_number_integer();
  return found == expected || (!is_decided && is_choice && found.type() == expected.type()) ? 0 : kUnequal;
}

// Those of a text: a 1 for each token that may be the answer; nothing for other tasks.
Contexts contexts_of(const json& text) {
  const auto range = value_or(text, "context", std::vector<std::size_t>{});
  if (range.empty()) return {};
  std::vector<bool> found(text.at("ids").size());
  for (std::size_t at = 0; at < found.size(); ++at) found[at] = at >= range.at(0) && at < range.at(1);
  return {found};
}

// How an adapter is run, in the first flavour that there is.
class Runner {
 public:
  explicit Runner(const Bundle& bundle) {
    const auto& graphs = bundle.manifest().graphs;
    if (graphs.count("slots")) alone_ = std::make_unique<Switchboard>(bundle, "slots", Feeding::native);
    else if (graphs.count("inputs")) alone_ = std::make_unique<Switchboard>(bundle, "inputs", Feeding::plain);
    else bank_ = std::make_unique<Bank>(bundle);
  }

  Outcome run(const Arrays& inputs, const std::string& adapter) const {
    return alone_ ? alone_->run(inputs, adapter) : bank_->run(inputs, {adapter});
  }

 private:
  std::unique_ptr<Switchboard> alone_;
  std::unique_ptr<Bank> bank_;
};

// None if there are no answers: the reference may be unable to give any.
std::optional<double> worst_of_set(const json& set, const Runner& runner, const Manifest& manifest) {
  const auto adapter = set.at("adapter").get<std::string>();
  const double allowed = set.at("absolute");
  std::optional<double> worst;
  for (const auto& text : set.at("texts")) {
    if (text.at("answer").is_null()) continue;
    const auto inputs = token_inputs({{text.at("ids"), text.at("token_type_ids")}}, manifest);
    json found = answers(inputs, runner.run(inputs, adapter), manifest, contexts_of(text)).front();
    if (found.contains("tokens")) {  // without those that the row was filled up with
      auto& tokens = found.at("tokens");
      while (tokens.size() > text.at("ids").size()) tokens.erase(tokens.size() - 1);
    }
    const double difference = deviation(found, text.at("answer"), text.at("decided"));
    worst = std::max(worst.value_or(0), difference == 0 ? 0 : difference / allowed);
  }
  return worst;
}

}  // namespace

std::map<std::string, double> worst_of_texts(const Bundle& bundle) {
  const auto& manifest = bundle.manifest();
  std::map<std::string, double> found;
  std::set<std::string> seen;
  if (manifest.golden_texts.empty()) return found;
  const Runner runner(bundle);
  try {
    const auto document = parse_json(bundle.read(manifest.golden_texts));
    check_version(document.at("version"), "golden texts");
    if (document.at("digest") != manifest.tokenizer_digest) {
      throw Fault({"was made with another tokenizer", manifest.golden_texts, document.at("digest"), manifest.tokenizer_digest});
    }
    for (const auto& set : document.at("sets")) {
      if (set.at("adapter").is_null()) continue;  // ids without answers
      const auto worst = worst_of_set(set, runner, manifest);
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
