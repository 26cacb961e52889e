// consumer BUNDLE ADAPTER: the answer of an adapter to four tokens, as one line of JSON
#include <adapter_export/runtime/answers.hpp>
#include <adapter_export/runtime/inputs.hpp>

#include <iostream>

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const Bundle bundle(arguments[1]);
  const Switchboard switchboard(bundle, "slots", Feeding::native);
  const auto inputs = token_inputs({{{2, 5, 6, 3}}}, bundle.manifest());
  const auto outcome = switchboard.run(inputs, Choice(arguments[2]));
  std::cout << answers(inputs, outcome, bundle.manifest()).at(0).dump() << "\n";
}
