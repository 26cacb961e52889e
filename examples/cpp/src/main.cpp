// bundle_client verify BUNDLE [--json]
// bundle_client run BUNDLE --ids 101,2040,102 [--types 0,0,0] [--ids ... --types ...] [options]
// bundle_client run BUNDLE --inputs ARRAYS.json [options]
//
// Exit code 0: passed. 1: something failed, and stderr says what. 2: the command line is wrong.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bundle.hpp"
#include "engine.hpp"
#include "fault.hpp"
#include "files.hpp"
#include "inputs.hpp"
#include "json_text.hpp"
#include "request.hpp"
#include "self_check.hpp"

using nlohmann::json;

namespace {

constexpr const char* kUsage =
    "usage: bundle_client verify BUNDLE [--json]\n"
    "       bundle_client run BUNDLE (--ids IDS [--types TYPES])... [OPTION]...\n"
    "       bundle_client run BUNDLE --inputs ARRAYS.json [OPTION]...\n"
    "\n"
    "  --ids 101,2040,102         One row of ids, without padding. Rows may differ in length.\n"
    "  --types 0,0,1              Token types of a row, one for each id. Required for a base that takes token types,\n"
    "                             unless the adapter's task takes one text.\n"
    "  --inputs ARRAYS.json       All inputs by name, as nested lists.\n"
    "  --adapter NAME             Adapter for all rows, or repeated for each row. `base` or `-` is the base. Required where\n"
    "                             adapters have tasks.\n"
    "  --strength NUMBER          Scale the adapter, for all rows or for each (1 = as trained, 0 = base).\n"
    "  --weights MEMBER=NUMBER,.. Member weights of a weighted fusion, for all rows or for each.\n"
    "  --context 0,0,1,1,0        Tokens that may be the answer to a question, for all rows or for each. Required for spans.\n"
    "  --load NAME=FILE           Load an `.onnx_adapter` file built for this bundle.";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int verify(const Bundle& bundle, bool as_json) {
  const auto findings = self_check(bundle, Engine(bundle));
  for (const auto& finding : findings) {
    if (!as_json) std::cout << line_of(finding) << "\n";
  }
  if (!as_json && !bundle.manifest().golden_texts.empty()) {
    std::printf("%-12s how text becomes ids is not checked: this client has no tokenizer\n", kTexts);
  }
  if (!as_json && !bundle.manifest().media.empty()) {
    std::printf("%-12s how a file becomes values is not checked: this client takes arrays\n", bundle.manifest().media.c_str());
  }
  if (as_json) std::cout << document(findings).dump(2) << "\n";
  check(findings);
  return 0;
}

std::vector<std::int64_t> parse_ids(const std::string& text) {
  std::vector<std::int64_t> ids;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::size_t end = 0;
    try {
      ids.push_back(std::stoll(part, &end));
    } catch (const std::logic_error&) {
      end = part.size() + 1;
    }
    if (end != part.size()) throw Usage("`" + part + "` is no number");
  }
  return ids;
}

std::vector<Arrays> read_inputs(const std::string& path, const Manifest& manifest) {
  try {
    return parse_rows(parse_json(read_file(path)), manifest);
  } catch (const json::exception& error) {
    throw Fault({"holds no arrays by name", path, error.what(), "", "write them as nested lists in JSON"});
  }
}

using Pair = std::pair<std::string, std::string>;

// NAME=VALUE
Pair pair_of(const std::string& text) {
  const auto at = text.find('=');
  if (at == std::string::npos || at == 0) throw Usage("`" + text + "` is not of the form NAME=VALUE");
  return {text.substr(0, at), text.substr(at + 1)};
}

double number_of(const std::string& text) {
  std::istringstream number(text);
  double found = 0;
  if (!(number >> found) || !number.eof()) throw Usage("`" + text + "` is no number");
  return found;
}

Weights weights_of(const std::string& text) {
  Weights weights;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const auto [name, value] = pair_of(part);
    if (!weights.emplace(name, static_cast<float>(number_of(value))).second) throw Usage("`" + text + "` names an adapter twice");
  }
  return weights;
}

Choice choice_of(const std::string& name) { return name == "-" ? Choice{} : Choice{name}; }

struct Call {
  std::vector<Tokens> tokens;     // rows of ids, or …
  std::string path;               // … the file with the inputs of all rows
  std::vector<Choice> adapters;   // these four once for all rows, or once for each
  std::vector<Weights> weights;
  std::vector<double> strengths;
  std::vector<json> contexts;     // which tokens of a row may be the answer to a question
  std::vector<Pair> files;        // adapters to load before
};

template <typename T>
std::vector<T> for_each_row(const std::vector<T>& given, std::size_t rows, const char* otherwise, const T& absent) {
  if (given.empty()) return std::vector<T>(rows, absent);
  if (given.size() == 1) return std::vector<T>(rows, given.front());
  if (given.size() != rows) {
    throw RequestFault({otherwise, "", std::to_string(given.size()), std::to_string(rows) + ", one for each row"});
  }
  return given;
}

void check_named(const Engine& engine) {
  try {
    engine.adapters().named({});
  } catch (const RequestFault& fault) {
    throw Usage(fault.what());
  }
}

int run(const Bundle& bundle, const Call& call) {
  Engine engine(bundle);
  for (const auto& [name, path] : call.files) engine.adapters().load(name, read_file(path));
  auto inputs = call.path.empty() ? std::vector<Arrays>{} : read_inputs(call.path, bundle.manifest());
  const auto count = call.path.empty() ? call.tokens.size() : inputs.size();
  auto adapters = for_each_row(call.adapters, count, "not one adapter for each row", Choice{});
  if (call.adapters.empty()) check_named(engine);
  for (auto& adapter : adapters) {
    if (adapter) adapter = engine.adapters().named(adapter);
  }
  const auto strengths = for_each_row(call.strengths, count, "strengths of another number than rows", 1.0);
  const auto weights = for_each_row(call.weights, count, "weights of another number than rows", Weights{});
  const auto contexts = parse_contexts(for_each_row(call.contexts, count, "not one context for each row", json()), count);
  std::vector<Row> rows;
  for (std::size_t row = 0; row < count; ++row) {
    if (call.path.empty() && call.tokens[row].types) input_record(bundle.manifest(), "token_type_ids");  // refuses others
    const auto of_tokens = [&] { return token_inputs(call.tokens[row], bundle.manifest(), engine.task(adapters[row])); };
    auto own = call.path.empty() ? within_row(row, count, of_tokens) : std::move(inputs[row]);
    rows.push_back({std::move(own), adapters[row], strengths[row], weights[row], contexts[row]});
  }
  std::cout << Answer(engine.answer(rows)).dump(2) << "\n";
  return 0;
}

int main_of(const std::vector<std::string>& arguments) {
  if (arguments.size() < 2) throw Usage("too few arguments");
  Call call;
  std::vector<std::vector<std::int64_t>> types;
  bool as_json = false;
  for (std::size_t at = 2; at < arguments.size(); ++at) {
    const auto& option = arguments[at];
    const bool has_value = at + 1 < arguments.size();
    if (option == "--json") as_json = true;
    else if (option == "--adapter" && has_value) call.adapters.push_back(choice_of(arguments[++at]));
    else if (option == "--weights" && has_value) call.weights.push_back(weights_of(arguments[++at]));
    else if (option == "--strength" && has_value) call.strengths.push_back(number_of(arguments[++at]));
    else if (option == "--load" && has_value) call.files.push_back(pair_of(arguments[++at]));
    else if (option == "--inputs" && has_value) call.path = arguments[++at];
    else if (option == "--ids" && has_value) call.tokens.push_back({parse_ids(arguments[++at])});
    else if (option == "--types" && has_value) types.push_back(parse_ids(arguments[++at]));
    else if (option == "--context" && has_value) call.contexts.push_back(parse_ids(arguments[++at]));
    else throw Usage("`" + option + "` is not known, or lacks its value");
  }
  const std::string& command = arguments[0];
  if (command != "verify" && command != "run") throw Usage("`" + command + "` is not a command");
  if (command == "run" && call.tokens.empty() == call.path.empty()) throw Usage("either --ids or --inputs");
  if (!types.empty() && types.size() != call.tokens.size()) throw Usage("--types go with each --ids, or with none");
  for (std::size_t row = 0; row < types.size(); ++row) call.tokens[row].types = types[row];
  const Bundle bundle(arguments[1]);
  if (command == "run") return run(bundle, call);
  bundle.check_nothing_else();
  return verify(bundle, as_json);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return main_of({arguments + 1, arguments + count});
  } catch (const Usage& error) {
    std::cerr << "error: " << error.what() << "\n" << kUsage << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
