// bundle_client verify BUNDLE [--json]
// bundle_client run BUNDLE --ids 101,2040,102 [--ids ...] [--load NAME=FILE]... [--adapter NAME]...
// bundle_client run BUNDLE --inputs ARRAYS.json [--load NAME=FILE]... [--adapter NAME]...
// bundle_client run BUNDLE ... --adapter FUSION --weights MEMBER=NUMBER,MEMBER=NUMBER [--weights ...]
// bundle_client run BUNDLE ... --adapter NAME --strength NUMBER [--strength ...]
// bundle_client run BUNDLE ... --adapter SPAN --context 0,0,1,1,0 [--context ...]
//
// Exit code 0: passed. 1: something failed, and stderr says what. 2: the command line is wrong.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "answers.hpp"
#include "bundle.hpp"
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
    "       bundle_client run BUNDLE (--ids 101,2040,102... | --inputs ARRAYS.json) [--load NAME=FILE]... [--adapter NAME]...\n"
    "       bundle_client run BUNDLE (--ids 101,2040,102... | --inputs ARRAYS.json) --adapter FUSION --weights MEMBER=NUMBER,...\n"
    "       bundle_client run BUNDLE (--ids 101,2040,102... | --inputs ARRAYS.json) --adapter NAME --strength NUMBER...\n"
    "       bundle_client run BUNDLE (--ids 101,2040,102... | --inputs ARRAYS.json) --adapter SPAN --context 0,1,0...\n"
    "One --adapter holds for all rows; one for each row makes a mixed batch, `-` standing for the base. --weights\n"
    "are those of the members of a weighted fusion, for all rows or for each. --strength is how many times what an adapter\n"
    "adds is added, for all rows or for each. --context, once for each row, has a 1 for each token that may be the answer\n"
    "to a question. --load takes an `.onnx_adapter` file that was built for this bundle.";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int verify(const Bundle& bundle, bool as_json) {
  const auto findings = self_check(bundle);
  for (const auto& [flavour, adapter, mixed, worst] : findings) {
    const auto who = mixed ? "mixed batch" : adapter.value_or("base");
    if (!as_json) std::printf("%-12s %-20s %6.1f %% of what is allowed\n", flavour.c_str(), who.c_str(), 100 * worst);
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

Arrays read_inputs(const std::string& path, const Manifest& manifest) {
  try {
    return parse_inputs(parse_json(read_file(path)), manifest);
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
  std::vector<Choice> adapters;  // one for all rows, or one for each
  std::vector<Weights> weights;  // of a fusion that runs all rows
  std::vector<double> strengths;  // one for all rows, or one for each
  std::vector<Pair> files;       // adapters to load before
  json contexts = json::array();  // for each row which of its tokens may be the answer to a question
};

template <typename T>
std::vector<T> for_each_row(const std::vector<T>& given, std::size_t rows, const char* otherwise) {
  if (given.size() == 1) return std::vector<T>(rows, given.front());
  if (given.size() != rows) {
    throw RequestFault({otherwise, "", std::to_string(given.size()), std::to_string(rows) + ", one for each row"});
  }
  return given;
}

Outcome run_in_slots(const Bundle& bundle, const Call& call, const Arrays& inputs) {
  const bool is_native = call.weights.empty() && call.strengths.empty();
  Switchboard switchboard(bundle, "slots", is_native ? Feeding::native : Feeding::plain);
  for (const auto& [name, path] : call.files) switchboard.load(name, read_file(path));
  if (call.strengths.empty()) return switchboard.run(inputs, call.adapters.front(), call.weights);
  const auto rows = static_cast<std::size_t>(inputs.begin()->second.shape.front());
  const auto adapters = for_each_row(call.adapters, rows, "not one adapter for each row");
  const auto strengths = for_each_row(call.strengths, rows, "strengths of another number than rows");
  std::vector<ScaledAdapter> scaled;
  for (std::size_t row = 0; row < rows; ++row) scaled.push_back({adapters[row], strengths[row]});
  return switchboard.run(inputs, scaled);
}

int run(const Bundle& bundle, Call call, const Arrays& inputs) {
  if (call.adapters.empty()) call.adapters.emplace_back();
  for (auto& adapter : call.adapters) adapter = bundle.manifest().answering(adapter);
  const bool is_mixed = call.adapters.size() > 1;
  if (!call.files.empty() && is_mixed) throw Usage("what is loaded runs alone, not in a bank");
  if (!call.weights.empty() && !call.strengths.empty()) {
    throw RequestFault({"weights are the strengths of a fusion's members", "`strength`", "", "", "multiply the weights by it"});
  }
  const auto outcome = is_mixed && call.strengths.empty() ? Bank(bundle).run(inputs, call.adapters) : run_in_slots(bundle, call, inputs);
  const auto found = answers(inputs, outcome, bundle.manifest(), parse_contexts(call.contexts));
  Answer document = Answer::array();
  for (std::size_t row = 0; row < found.size(); ++row) {
    document.push_back(with_adapter(found[row], call.adapters[is_mixed ? row : 0]));
  }
  std::cout << document.dump(2) << "\n";
  return 0;
}

int main_of(const std::vector<std::string>& arguments) {
  if (arguments.size() < 2) throw Usage("too few arguments");
  Call call;
  std::vector<Tokens> rows;
  std::string path;
  bool as_json = false;
  for (std::size_t at = 2; at < arguments.size(); ++at) {
    const auto& option = arguments[at];
    const bool has_value = at + 1 < arguments.size();
    if (option == "--json") as_json = true;
    else if (option == "--adapter" && has_value) call.adapters.push_back(choice_of(arguments[++at]));
    else if (option == "--weights" && has_value) call.weights.push_back(weights_of(arguments[++at]));
    else if (option == "--strength" && has_value) call.strengths.push_back(number_of(arguments[++at]));
    else if (option == "--load" && has_value) call.files.push_back(pair_of(arguments[++at]));
    else if (option == "--inputs" && has_value) path = arguments[++at];
    else if (option == "--ids" && has_value) rows.push_back({parse_ids(arguments[++at])});
    else if (option == "--context" && has_value) call.contexts.push_back(parse_ids(arguments[++at]));
    else throw Usage("`" + option + "` is not known, or lacks its value");
  }
  const std::string& command = arguments[0];
  if (command != "verify" && command != "run") throw Usage("`" + command + "` is not a command");
  if (command == "run" && rows.empty() == path.empty()) throw Usage("either --ids or --inputs");
  if (!call.weights.empty() && call.adapters.size() != 1) throw Usage("--weights go with one --adapter");
  const Bundle bundle(arguments[1]);
  if (command == "verify") bundle.check_nothing_else();
  if (command == "verify") return verify(bundle, as_json);
  const auto& manifest = bundle.manifest();
  return run(bundle, call, rows.empty() ? read_inputs(path, manifest) : token_inputs(rows, manifest));
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
