// consumer BUNDLE ADAPTER: the answer of an adapter to four tokens, as one line of JSON
#include <adapter_export/runtime/engine.hpp>
#include <adapter_export/runtime/inputs.hpp>

#include <iostream>

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const Bundle bundle(arguments[1]);
  const Engine engine(bundle);
  const Choice adapter = arguments[2];
  const Row row{token_inputs({{2, 5, 6, 3}}, bundle.manifest(), engine.task(adapter)), adapter};
  std::cout << engine.answer({row}).at(0).dump() << "\n";
}
