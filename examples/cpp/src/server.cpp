// bundle_server BUNDLE [PORT]: an HTTP service. One session, any number of requests at once, each with its own adapter.
//
//   GET    /adapters             the adapters that are loaded, with their labels
//   PUT    /adapters/NAME        load one: the body is its `.onnx_adapter` file; `?labels=a,b` names its classes, and
//                                `?task=multi_label` says what its results mean
//   DELETE /adapters/NAME        forget one
//   POST   /run                  {"adapter": "a" or null, "inputs": {"input_ids": [[101, 102]], …}}
//   POST   /run                  {"adapters": ["a", null, "b"], "inputs": …}: each row through an adapter of its own
//
// Both take a `context` beside the inputs: for each row a 1 for each token that may be the answer to a question; and a
// `strength`: how many times what an adapter adds is added, one number for all rows or a list with one for each.
// Both give {"rows": [{"adapter": "a", "label": "yes", "probability": 0.9, "probabilities": {…}}, …]}; `answers.hpp` says
// what stands there for adapters of other tasks. A request that cannot be served gives {"error": …} and status 400.
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
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

using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

constexpr int kDefaultPort = 8080;

// What one client may ask, so that it cannot stop the service for others. A connection takes a thread, also while its
// client sends slowly, so there are many; few of them compute at a time.
constexpr std::size_t kLargestAdapter = std::size_t{1} << 28;  // bytes
constexpr std::size_t kLargestCall = std::size_t{1} << 22;     // bytes
constexpr std::size_t kMostLoaded = 64;                        // adapters beside those of the bundle
constexpr std::size_t kMostConnections = 256;
constexpr seconds kPause{2};     // the longest between two pieces of a request, or before the next one
constexpr seconds kSending{10};  // for a head, and again for a body
constexpr int kMostFiles = 1024;  // the numbers of open files that are looked at
constexpr seconds kWaiting{30};  // for a turn to compute

// A request that is refused for what it costs, with the status that says so.
struct TooMuch : std::runtime_error {
  TooMuch(int status, const std::string& what) : std::runtime_error(what), status(status) {}
  int status;
};

std::string body_of(const httplib::ContentReader& reader, std::size_t most) {
  std::string body;
  const auto end = Clock::now() + kSending;
  bool is_too_large = false, is_late = false;
  const bool is_whole = reader([&](const char* data, std::size_t size) {
    is_too_large = body.size() + size > most;
    is_late = Clock::now() > end;
    if (is_too_large || is_late) return false;
    body.append(data, size);
    return true;
  });
  if (is_too_large) throw TooMuch(413, "the body is too large; expected at most " + std::to_string(most) + " bytes");
  if (is_late || !is_whole) throw TooMuch(408, "the body did not come in time");
  return body;
}

// Ends connections whose request has no whole head in time. The library limits the pause between two pieces alone, and tells
// nobody which connections it has: they are found among the open files, by the port of the client.
class Heads {
 public:
  explicit Heads(httplib::Server& server) {
    server.set_pre_routing_handler([this](const httplib::Request& request, httplib::Response&) {
      note(request.remote_port, true);
      return httplib::Server::HandlerResponse::Unhandled;
    });
    server.set_logger([this](const httplib::Request& request, const httplib::Response&) { note(request.remote_port, false); });
    watching_ = std::thread([this] {
      std::unique_lock<std::mutex> lock(mutex_);
      while (!ended_.wait_for(lock, seconds{1}, [this] { return is_ended_; })) end_late_ones();
    });
  }
  ~Heads() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_ended_ = true;
    }
    ended_.notify_one();
    watching_.join();
  }

 private:
  struct State {
    bool has_head;
    Clock::time_point since;
  };

  void note(int port, bool has_head) {
    const std::lock_guard<std::mutex> lock(mutex_);
    connections_[port] = {has_head, Clock::now()};
  }

  void end_late_ones() {
    std::map<int, State> found;
    for (int file = 0; file < kMostFiles; ++file) {
      sockaddr_in client{};
      socklen_t size = sizeof client;
      if (getpeername(file, reinterpret_cast<sockaddr*>(&client), &size) != 0 || client.sin_family != AF_INET) continue;
      const int port = ntohs(client.sin_port);
      const auto known = connections_.find(port);
      const auto state = known == connections_.end() ? State{false, Clock::now()} : known->second;
      if (!state.has_head && Clock::now() - state.since > kSending) shutdown(file, SHUT_RDWR);
      found.emplace(port, state);
    }
    connections_ = std::move(found);
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  bool is_ended_ = false;
  std::map<int, State> connections_;  // by the port of the client, on this very machine
  std::thread watching_;
};

// As many calls compute at a time as there are processors; the others wait for their turn.
class Turns {
 public:
  template <typename Work>
  auto take(Work work) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (!changed_.wait_for(lock, kWaiting, [&] { return free_ > 0; })) throw TooMuch(503, "too many requests are waiting");
      --free_;
    }
    const std::unique_ptr<Turns, void (*)(Turns*)> back(this, [](Turns* turns) {
      {
        const std::lock_guard<std::mutex> lock(turns->mutex_);
        ++turns->free_;
      }
      turns->changed_.notify_one();
    });
    return work();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned free_ = std::max(1U, std::thread::hardware_concurrency());
};

Choice choice_of(const json& name) { return name.is_null() ? Choice{} : Choice{name.get<std::string>()}; }

// One for all rows, or a list with one for each.
std::vector<ScaledAdapter> scaled(const std::vector<Choice>& rows, const json& strength) {
  const auto given = strength.is_array() ? strength : json(rows.size(), strength);
  if (given.size() != rows.size()) {
    throw RequestFault({"strengths of another number than rows", "", std::to_string(given.size()),
                        std::to_string(rows.size()) + ", one for each row"});
  }
  std::vector<ScaledAdapter> found;
  for (std::size_t row = 0; row < rows.size(); ++row) found.push_back({rows[row], given[row].get<double>()});
  return found;
}

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
    if (key != "inputs" && key != "adapter" && key != "adapters" && key != "context" && key != "strength") {
      throw RequestFault({"a key that is not known", "", "`" + key + "`",
                          "`inputs`, `adapter` or `adapters`, `context`, and `strength`"});
    }
  }
  if (request.contains("adapter") && request.contains("adapters")) {
    throw RequestFault({"one call has one choice", "", "", "`adapter` or `adapters`"});
  }
}

class Service {
 public:
  explicit Service(const Bundle& bundle) : manifest_(bundle.manifest()), switchboard_(bundle, "slots", Feeding::plain) {
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
    const bool is_mixed = request.contains("adapters");
    const auto count = static_cast<std::size_t>(inputs.begin()->second.shape.front());
    const auto rows = chosen(is_mixed ? request.at("adapters") : json(count, request.value("adapter", json())));
    const auto strength = request.value("strength", json());
    const auto outcome = !strength.is_null() ? switchboard_.run(inputs, scaled(rows, strength))
                         : is_mixed          ? mixed(inputs, rows)
                                             : switchboard_.run(inputs, rows.front());
    const auto found = answers(inputs, outcome, manifest_, contexts);
    Answer document = Answer::array();
    for (std::size_t row = 0; row < found.size(); ++row) document.push_back(with_adapter(found[row], rows[row]));
    return {{"rows", document}};
  }

  void load(const std::string& name, const std::string& bytes, const Claim& claim) {
    const std::lock_guard<std::mutex> lock(loading_);  // or several at once would each see room for one
    const auto names = switchboard_.adapters();
    const auto loaded = std::count_if(names.begin(), names.end(), [&](const auto& one) { return !switchboard_.is_built_in(one); });
    if (static_cast<std::size_t>(loaded) >= kMostLoaded) {
      throw TooMuch(409, std::to_string(kMostLoaded) + " adapters are loaded; unload one first");
    }
    switchboard_.load(name, bytes, claim);
  }
  void unload(const std::string& name) { switchboard_.unload(name); }

 private:
  std::vector<Choice> chosen(const json& names) const {
    std::vector<Choice> rows;
    for (const auto& name : names) rows.push_back(manifest_.answering(choice_of(name)));
    return rows;
  }

  Outcome mixed(const Arrays& inputs, const std::vector<Choice>& rows) const {
    if (!bank_) throw RequestFault({"this bundle has no bank", "", "", "", "send one request for each adapter"});
    for (const auto& row : rows) {
      if (row) check_built_in(*row);
    }
    return bank_->run(inputs, rows);
  }

  // The bank holds what the bundle was built with; another adapter of the same name may have been loaded since.
  void check_built_in(const std::string& name) const {
    if (switchboard_.is_built_in(name)) return;
    throw RequestFault({"was loaded at run time, and is not in the bank", "adapter `" + name + "`", "", "",
                        "send a request for it alone"});
  }

  Manifest manifest_;
  std::mutex loading_;
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
  } catch (const TooMuch& error) {
    response.status = error.status;
    response.set_header("Connection", "close");  // what is left of the body is not read
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

void add_routes(httplib::Server& server, Service& service, Turns& turns) {
  using httplib::ContentReader;
  using httplib::Request;
  using httplib::Response;
  server.Get("/adapters", [&](const Request&, Response& response) {
    answer(response, [&] { return service.adapters(); });
  });
  server.Put(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response, const ContentReader& reader) {
    answer(response, [&] {
      const auto body = body_of(reader, kLargestAdapter);
      const Claim claim{request.get_param_value("task"), labels_of(request.get_param_value("labels"))};
      service.load(request.matches[1], body, claim);
      return service.adapters();
    });
  });
  server.Delete(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response) {
    answer(response, [&] {
      service.unload(request.matches[1]);
      return service.adapters();
    });
  });
  server.Post("/run", [&](const Request&, Response& response, const ContentReader& reader) {
    answer(response, [&] {
      const auto body = body_of(reader, kLargestCall);
      return turns.take([&] { return service.run(parse_request(body)); });
    });
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
    Turns turns;
    httplib::Server server;
    server.new_task_queue = [] { return new httplib::ThreadPool(kMostConnections, kMostConnections); };
    server.set_read_timeout(kPause);
    server.set_keep_alive_timeout(kPause.count());
    server.set_payload_max_length(kLargestAdapter);
    add_routes(server, service, turns);
    const Heads heads(server);
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
