// bundle_server BUNDLE [PORT]: an HTTP service. One engine, any number of requests at once, each row with its own adapter.
//
//   GET    /adapters             the adapters that are loaded, with the records of their tasks
//   PUT    /adapters/NAME        load one: the body is its `.onnx_adapter` file; `?labels=a,b` names its classes, and
//                                `?task=multi_label` says what its results mean
//   DELETE /adapters/NAME        unload one
//   POST   /answer               answers: {"adapter": "a" or null, "inputs": {"input_ids": [[101, 102], [101]], …}}
//   POST   /answer               {"adapters": ["a", null], "inputs": …}: each row through an adapter of its own
//   POST   /run                  the same, and raw outputs instead of answers
//
// Both take, beside the inputs, `context`: for each row a 1 for each token that may be the answer to a question; `strength`:
// how many times what an adapter adds is added; and `weights`: those of a fusion's members. The last two are one value for
// all rows, or a list with one for each. Both give {"rows": [{"adapter": "a", "task": "single_label", …}, …]}; `answers.hpp`
// says more. A request that cannot be served gives {"error": …} and status 400.
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
#include <set>
#include <sstream>
#include <thread>

#include "engine.hpp"
#include "fault.hpp"
#include "inputs.hpp"
#include "json_text.hpp"

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

// Ends connections whose request has no whole head in time. The library limits only the pause between two pieces and does not
// expose its connections, so they are found among the open files by the client's port.
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

// The value of each row: one for all rows, or a list with one for each.
std::vector<json> for_each_row(const json& given, const std::string& key, std::size_t rows) {
  if (!given.is_array()) return std::vector<json>(rows, given);
  if (given.size() == rows) return given;
  throw RequestFault({"there is not one " + key + " for each row", "", std::to_string(given.size()), std::to_string(rows)});
}

Weights weights_of(const json& given) {
  Weights found;
  if (given.is_null()) return found;
  for (const auto& [member, weight] : given.get<std::map<std::string, double>>()) found.emplace(member, static_cast<float>(weight));
  if (found.empty()) throw RequestFault({"`weights` names no member"});
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
    if (key != "inputs" && key != "adapter" && key != "adapters" && key != "context" && key != "strength" && key != "weights") {
      throw RequestFault({"a key that is not known", "", "`" + key + "`",
                          "`inputs`, `adapter` or `adapters`, `context`, `strength`, and `weights`"});
    }
  }
  if (!request.value("adapter", json()).is_null() && !request.value("adapters", json()).is_null()) {
    throw RequestFault({"one call has one choice", "", "", "`adapter` or `adapters`"});
  }
}

// Nor may a key of the address be misspelt, or occur twice.
void check_query(const httplib::Request& request, const std::set<std::string>& known = {}) {
  for (const auto& [key, _] : request.params) {
    if (known.count(key) == 0) throw RequestFault({"a query key that is not known", "", "`" + key + "`"});
    if (request.params.count(key) > 1) throw RequestFault({"a query key occurs twice", "", "`" + key + "`"});
  }
}

class Service {
 public:
  explicit Service(const Bundle& bundle) : manifest_(bundle.manifest()), engine_(bundle) { engine_.open_all(); }

  Answer adapters() const {
    Answer document = Answer::object();
    for (const auto& name : engine_.adapters().names()) {
      const auto task = engine_.task(name);
      document[name] = {{"task", task ? task->record : Answer(nullptr)}};
    }
    return document;
  }

  Answer answer(const json& request) const {
    const auto asked = rows(request);
    if (request.value("adapter", json()).is_null() && request.value("adapters", json()).is_null()) engine_.adapters().named({});
    return {{"rows", engine_.answer(asked)}};
  }

  Answer run(const json& request) const {
    Answer document = Answer::array();
    const auto asked = rows(request);
    const auto results = engine_.run(asked);
    for (std::size_t at = 0; at < results.size(); ++at) {
      document.push_back(within_row(at, results.size(), [&] { return raw_answer(results[at]); }));
    }
    return {{"rows", document}};
  }

  void load(const std::string& name, const std::string& bytes, const Claim& claim) {
    const std::lock_guard<std::mutex> lock(loading_);  // or several at once would each see room for one
    if (engine_.adapters().loaded_beside() >= kMostLoaded) {
      throw TooMuch(409, std::to_string(kMostLoaded) + " adapters are loaded; unload one first");
    }
    engine_.adapters().load(name, bytes, claim);
  }
  void unload(const std::string& name) { engine_.adapters().unload(name); }

 private:
  std::vector<Row> rows(const json& request) const {
    check_keys(request);
    auto inputs = parse_rows(request.at("inputs"), manifest_);
    const auto count = inputs.size();
    const auto each = request.value("adapters", json());
    const auto adapters = each.is_null() ? std::vector<json>(count, request.value("adapter", json()))
                                         : for_each_row(each.get<std::vector<json>>(), "adapter", count);
    const auto strengths = for_each_row(request.value("strength", json()), "strength", count);
    const auto weights = for_each_row(request.value("weights", json()), "weights", count);
    const auto contexts = parse_contexts(request.value("context", json()), count);
    std::vector<Row> found;
    for (std::size_t row = 0; row < count; ++row) {
      const auto adapter = adapters[row].is_null() ? Choice{} : engine_.adapters().named(adapters[row].get<std::string>());
      found.push_back({std::move(inputs[row]), adapter,
                       strengths[row].is_null() ? 1.0 : strengths[row].get<double>(),
                       weights_of(weights[row]), contexts[row]});
    }
    return found;
  }

  Manifest manifest_;
  std::mutex loading_;
  Engine engine_;
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
  server.Get("/adapters", [&](const Request& request, Response& response) {
    answer(response, [&] {
      check_query(request);
      return service.adapters();
    });
  });
  server.Put(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response, const ContentReader& reader) {
    answer(response, [&] {
      const auto body = body_of(reader, kLargestAdapter);
      check_query(request, {"task", "labels"});
      const Claim claim{request.get_param_value("task"), labels_of(request.get_param_value("labels"))};
      service.load(request.matches[1], body, claim);
      return service.adapters();
    });
  });
  server.Delete(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response) {
    answer(response, [&] {
      check_query(request);
      service.unload(request.matches[1]);
      return service.adapters();
    });
  });
  const auto post = [&](const char* path, Answer (Service::*work)(const json&) const) {
    server.Post(path, [&, work](const Request& request, Response& response, const ContentReader& reader) {
      answer(response, [&] {
        const auto body = body_of(reader, kLargestCall);
        check_query(request);
        return turns.take([&] { return (service.*work)(parse_request(body)); });
      });
    });
  };
  post("/answer", &Service::answer);
  post("/run", &Service::run);
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
