// bundle_server BUNDLE [PORT]: an HTTP service. One session, any number of requests at once, each with its own adapter.
//
//   GET    /adapters             the adapters that are loaded, with their labels
//   PUT    /adapters/NAME        load one: the body is its `.onnx_adapter` file; `?labels=a,b` names its classes, and
//                                `?task=multi_label` says what its results mean
//   DELETE /adapters/NAME        forget one
//   POST   /run                  {"adapter": "a" or null, "inputs": {"input_ids": [[101, 102]], …}}
//   POST   /run                  {"adapters": ["a", null, "b"], "inputs": …}: each row through an adapter of its own
//
// Both take a `context` beside the inputs: for each row a 1 for each token that may be the answer to a question.
// Both give {"rows": [{"adapter": "a", "label": "yes", "probability": 0.9, "probabilities": {…}}, …]}; `answers.hpp` says
// what stands there for adapters of other tasks. A request that cannot be served gives {"error": …} and status 400.
#include <httplib.h>

#include <csignal>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "answers.hpp"
#include "fault.hpp"
#include "inputs.hpp"
#include "json_text.hpp"
#include "switchboard.hpp"

using nlohmann::json;

namespace {

constexpr int kDefaultPort = 8080;
constexpr std::size_t kLargestBody = std::size_t{1} << 28;  // bytes: an adapter

Choice choice_of(const json& name) { return name.is_null() ? Choice{} : Choice{name.get<std::string>()}; }

std::vector<std::string> labels_of(const std::string& text) {
  std::vector<std::string> labels;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) labels.push_back(part);
  return labels;
}

json parse_request(const std::string& body) {
  try {
    return parse_json(body);
  } catch (const std::exception& error) {
    throw RequestFault({"the request is no JSON", "", error.what()});
  }
}

// A misspelt `adapter` would run the base without a word.
void check_keys(const json& request) {
  for (const auto& [key, _] : request.items()) {
    if (key != "inputs" && key != "adapter" && key != "adapters" && key != "context") {
      throw RequestFault({"a key that is not known", "", "`" + key + "`", "`inputs`, `adapter` or `adapters`, and `context`"});
    }
  }
  if (request.contains("adapter") && request.contains("adapters")) {
    throw RequestFault({"one call has one choice", "", "", "`adapter` or `adapters`"});
  }
}

class Service {
 public:
  explicit Service(const Bundle& bundle) : manifest_(bundle.manifest()), switchboard_(bundle, "slots", Feeding::native) {
    if (manifest_.graphs.count("bank")) bank_ = std::make_unique<Bank>(bundle);
  }

  Answer adapters() const {
    Answer document = Answer::object();
    for (const auto& name : switchboard_.adapters()) {
      const auto task = switchboard_.task(name);
      document[name] = {{"task", task ? Answer(task->type) : Answer(nullptr)},
                        {"labels", task ? task->labels : std::vector<std::string>{}}};
    }
    return document;
  }

  Answer run(const json& request) const {
    check_keys(request);
    const auto inputs = parse_inputs(request.at("inputs"), manifest_);
    const auto contexts = parse_contexts(request.value("context", json::array()));
    return {{"rows", request.contains("adapters") ? mixed(inputs, request.at("adapters"), contexts)
                                                  : alone(inputs, request.value("adapter", json(nullptr)), contexts)}};
  }

  void load(const std::string& name, const std::string& bytes, const Claim& claim) { switchboard_.load(name, bytes, claim); }
  void unload(const std::string& name) { switchboard_.unload(name); }

 private:
  Answer alone(const Arrays& inputs, const json& name, const Contexts& contexts) const {
    const auto adapter = manifest_.answering(choice_of(name));
    const auto outcome = switchboard_.run(inputs, adapter);
    return named(answers(inputs, outcome, manifest_, contexts), std::vector<Choice>(outcome.heads.size(), adapter));
  }

  Answer mixed(const Arrays& inputs, const json& names, const Contexts& contexts) const {
    if (!bank_) throw RequestFault({"this bundle has no bank", "", "", "", "send one request for each adapter"});
    std::vector<Choice> rows;
    for (const auto& name : names) {
      rows.push_back(manifest_.answering(choice_of(name)));
      if (rows.back()) check_built_in(*rows.back());
    }
    return named(answers(inputs, bank_->run(inputs, rows), manifest_, contexts), rows);
  }

  static Answer named(const std::vector<Answer>& rows, const std::vector<Choice>& adapters) {
    Answer found = Answer::array();
    for (std::size_t at = 0; at < rows.size(); ++at) found.push_back(with_adapter(rows[at], adapters[at]));
    return found;
  }

  // The bank holds what the bundle was built with; another adapter of the same name may have been loaded since.
  void check_built_in(const std::string& name) const {
    if (switchboard_.is_built_in(name)) return;
    throw RequestFault({"was loaded at run time, and is not in the bank", "adapter `" + name + "`", "", "",
                        "send a request for it alone"});
  }

  Manifest manifest_;
  Switchboard switchboard_;
  std::unique_ptr<Bank> bank_;
};

// Names in messages may be no UTF-8.
void send(httplib::Response& response, const Answer& document) {
  response.set_content(document.dump(-1, ' ', false, Answer::error_handler_t::replace), "application/json");
}

// Answer with what `work` returns; a request that is wrong gets 400 and the reason.
template <typename Work>
void answer(httplib::Response& response, Work work) {
  Answer document;
  try {
    document = work();
  } catch (const RequestFault& error) {
    response.status = 400;
    document = {{"error", error.what()}};
  } catch (const json::exception& error) {
    response.status = 400;
    document = {{"error", std::string("the request is no JSON of the expected form: ") + error.what()}};
  } catch (const std::exception& error) {
    response.status = 500;
    document = {{"error", error.what()}};
  }
  send(response, document);
}

void add_routes(httplib::Server& server, Service& service) {
  using httplib::Request;
  using httplib::Response;
  server.Get("/adapters", [&](const Request&, Response& response) {
    answer(response, [&] { return service.adapters(); });
  });
  server.Put(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response) {
    answer(response, [&] {
      const Claim claim{request.get_param_value("task"), labels_of(request.get_param_value("labels"))};
      service.load(request.matches[1], request.body, claim);
      return service.adapters();
    });
  });
  server.Delete(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response) {
    answer(response, [&] {
      service.unload(request.matches[1]);
      return service.adapters();
    });
  });
  server.Post("/run", [&](const Request& request, Response& response) {
    answer(response, [&] { return service.run(parse_request(request.body)); });
  });
  server.set_error_handler([](const Request& request, Response& response) {
    if (response.body.empty()) send(response, {{"error", "nothing is served at `" + request.path + "` in this way"}});
  });
}

sigset_t stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

// Serve until SIGINT or SIGTERM; what is being computed then is answered still.
bool serve(httplib::Server& server) {
  const auto signals = stop_signals();
  std::thread([&server, signals] {
    int signal = 0;
    sigwait(&signals, &signal);
    server.stop();
  }).detach();
  return server.listen_after_bind();
}

}  // namespace

int main(int count, char** arguments) {
  const std::string port_text = count == 3 ? arguments[2] : std::to_string(kDefaultPort);
  if (count < 2 || count > 3 || port_text.size() > 5 || port_text.find_first_not_of("0123456789") != std::string::npos) {
    std::cerr << "usage: bundle_server BUNDLE [PORT]\nPort 0 takes any that is free.\n";
    return 2;
  }
  const auto signals = stop_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // in every thread that is made from here on: `serve` waits for them
  try {
    const Bundle bundle(arguments[1]);
    Service service(bundle);
    httplib::Server server;
    server.set_payload_max_length(kLargestBody);
    add_routes(server, service);
    const int wanted = std::stoi(port_text);
    const int port = wanted == 0 ? server.bind_to_any_port("127.0.0.1") : wanted;
    if (wanted != 0 && !server.bind_to_port("127.0.0.1", port)) throw Fault({"the port is taken", port_text});
    std::cout << "listening on http://127.0.0.1:" << port << std::endl;
    return serve(server) ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
