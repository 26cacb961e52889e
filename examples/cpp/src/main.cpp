// bundle_client verify BUNDLE [--json]
// bundle_client run BUNDLE [--adapter NAME]... --ids 101,2040,102 [--ids ...]
// bundle_client run BUNDLE [--adapter NAME]... --inputs ARRAYS.json
//
// Exit code 0: all is well. 1: something is wrong, and stderr says what. 2: the command line is wrong.
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
    "       bundle_client run BUNDLE [--adapter NAME]... --ids 101,2040,102 [--ids ...]\n"
    "       bundle_client run BUNDLE [--adapter NAME]... --inputs ARRAYS.json\n"
    "One --adapter holds for all rows; one for each row makes a mixed batch, `base` standing for none.";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int verify(const Bundle& bundle, bool as_json) {
  const auto findings = self_check(bundle);
  json document = json::array();
  bool good = !findings.empty();
  for (const auto& [flavour, adapter, mixed, worst] : findings) {
    good = good && worst <= 1;  // NaN fails
    json entry = {{"flavour", flavour}, {"adapter", nullptr}, {"mixed", mixed}, {"worst", worst}};
    if (adapter) entry["adapter"] = *adapter;
    document.push_back(entry);
    const auto who = mixed ? "mixed batch" : adapter.value_or("base");
    if (!as_json) std::printf("%-12s %-20s %6.1f %% of what is allowed\n", flavour.c_str(), who.c_str(), 100 * worst);
  }
  if (as_json) std::cout << document.dump(2) << "\n";
  if (!good) std::cerr << "error: this machine does not compute what the reference computed\n";
  return good ? 0 : 1;
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

// Ids and masks of all rows, padded to the longest.
Arrays inputs_of(const std::vector<std::vector<std::int64_t>>& rows, const Manifest& manifest) {
  std::size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.size());
  const Shape shape{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(longest)};
  std::vector<std::int64_t> ids, mask;
  for (const auto& row : rows) {
    for (std::size_t at = 0; at < longest; ++at) {
      ids.push_back(at < row.size() ? row[at] : 0);
      mask.push_back(at < row.size());
    }
  }
  const std::vector<std::int64_t> zeros(ids.size(), 0);
  Arrays inputs;
  for (const auto& record : manifest.inputs) {
    if (record.dtype != "int64" || record.role == "values") {
      throw Fault({"an input that no ids give", "`" + record.name + "`", record.dtype, "ids or a mask, int64"});
    }
    const auto& numbers = record.name == "token_type_ids" ? zeros : record.role == "mask" ? mask : ids;
    inputs.emplace(record.name, int64_array(numbers, shape));
  }
  return inputs;
}

Arrays read_inputs(const std::string& path, const Manifest& manifest) {
  try {
    return parse_inputs(parse_json(read_file(path)), manifest);
  } catch (const json::exception& error) {
    throw Fault({"holds no arrays by name", path, error.what(), "", "write them as nested lists in JSON"});
  }
}

int run(const Bundle& bundle, const std::vector<std::string>& names, const Arrays& inputs) {
  const auto& manifest = bundle.manifest();
  const auto batch = static_cast<std::size_t>(inputs.begin()->second.shape.front());
  std::vector<Choice> choices;
  for (const auto& name : names) choices.push_back(name == "base" ? Choice{} : Choice{name});
  if (choices.size() <= 1) {
    const Choice choice = choices.empty() ? Choice{} : choices.front();
    const auto [outputs, head] = Switchboard(bundle, "slots", Feeding::native).run(inputs, choice);
    choices.assign(batch, choice);
    const std::vector<Head> heads(batch, head);
    std::cout << answers(inputs, outputs, choices, heads, manifest).dump(2) << "\n";
    return 0;
  }
  const auto outputs = Bank(bundle).run(inputs, choices);
  std::vector<Head> heads;
  for (const auto& choice : choices) heads.push_back(choice ? manifest.adapter(*choice).head : Head{});
  std::cout << answers(inputs, outputs, choices, heads, manifest).dump(2) << "\n";
  return 0;
}

int main_of(const std::vector<std::string>& arguments) {
  if (arguments.size() < 2) throw Usage("too few arguments");
  std::vector<std::string> adapters;
  std::vector<std::vector<std::int64_t>> rows;
  std::string path;
  bool as_json = false;
  for (std::size_t at = 2; at < arguments.size(); ++at) {
    const auto& option = arguments[at];
    const bool has_value = at + 1 < arguments.size();
    if (option == "--json") as_json = true;
    else if (option == "--adapter" && has_value) adapters.push_back(arguments[++at]);
    else if (option == "--inputs" && has_value) path = arguments[++at];
    else if (option == "--ids" && has_value) rows.push_back(parse_ids(arguments[++at]));
    else throw Usage("`" + option + "` is not known, or lacks its value");
  }
  const std::string& command = arguments[0];
  if (command != "verify" && command != "run") throw Usage("`" + command + "` is not a command");
  if (command == "run" && rows.empty() == path.empty()) throw Usage("either --ids or --inputs");
  const Bundle bundle(arguments[1]);
  if (command == "verify") bundle.check_nothing_else();
  if (command == "verify") return verify(bundle, as_json);
  const auto& manifest = bundle.manifest();
  return run(bundle, adapters, rows.empty() ? read_inputs(path, manifest) : inputs_of(rows, manifest));
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
