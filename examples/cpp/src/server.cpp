// bundle_server BUNDLE [PORT]: an HTTP service. One session, any number of requests at once, each with its own adapter.
//
//   GET    /adapters             the adapters that are loaded, with their labels
//   PUT    /adapters/NAME        load one: the body is a safetensors file with a tensor for every slot
//   DELETE /adapters/NAME        forget one
//   POST   /run                  {"adapter": "a" or null, "inputs": {"input_ids": [[101, 102]], …}} → the outputs
//   POST   /run                  {"adapters": ["a", null, "b"], "inputs": …} → each row through an adapter of its own
#include <httplib.h>

#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

#include "fault.hpp"
#include "switchboard.hpp"

using nlohmann::json;

namespace {

constexpr int kDefaultPort = 8080;

Array parse_array(const json& rows) {
  if (!rows.is_array() || rows.empty() || !rows.front().is_array()) throw RequestFault({"an input is no list of rows"});
  const Shape shape{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows.front().size())};
  std::vector<std::int64_t> numbers;
  for (const auto& row : rows) {
    if (row.size() != rows.front().size()) throw RequestFault({"rows of different lengths", "", "", "padded rows"});
    for (const auto& number : row) {
      if (!number.is_number_integer()) throw RequestFault({"an input holds what is no integer", "", number.dump()});
      numbers.push_back(number.get<std::int64_t>());
    }
  }
  return int64_array(numbers, shape);
}

Arrays parse_inputs(const json& document) {
  Arrays inputs;
  for (const auto& [name, rows] : document.items()) inputs.emplace(name, parse_array(rows));
  return inputs;
}

json nested(const Array& array, std::size_t axis, std::size_t& at) {
  if (axis == array.shape.size()) return array.data<float>()[at++];
  json list = json::array();
  for (std::int64_t i = 0; i < array.shape[axis]; ++i) list.push_back(nested(array, axis + 1, at));
  return list;
}

json to_json(const Arrays& outputs) {
  json document = json::object();
  for (const auto& [name, array] : outputs) {
    std::size_t at = 0;
    if (array.dtype == "float32") document[name] = nested(array, 0, at);
  }
  return document;
}

Choice choice_of(const json& name) { return name.is_null() ? Choice{} : Choice{name.get<std::string>()}; }

class Service {
 public:
  explicit Service(const Bundle& bundle) : switchboard_(bundle, "slots", Feeding::native) {
    if (bundle.manifest().graphs.count("bank")) bank_ = std::make_unique<Bank>(bundle);
  }

  json adapters() const {
    json document = json::object();
    for (const auto& name : switchboard_.adapters()) document[name] = switchboard_.labels(name);
    return document;
  }

  json run(const json& request) const {
    const auto inputs = parse_inputs(request.at("inputs"));
    if (!request.contains("adapters")) {
      return to_json(switchboard_.run(inputs, choice_of(request.value("adapter", json(nullptr)))));
    }
    if (!bank_) throw RequestFault({"this bundle has no bank", "", "", "", "send one request for each adapter"});
    std::vector<Choice> rows;
    for (const auto& name : request.at("adapters")) rows.push_back(choice_of(name));
    return to_json(bank_->run(inputs, rows));
  }

  void load(const std::string& name, const std::string& bytes) { switchboard_.load(name, bytes, {}); }
  void unload(const std::string& name) { switchboard_.unload(name); }

 private:
  Switchboard switchboard_;
  std::unique_ptr<Bank> bank_;
};

// Answer with what `work` returns; a request that is wrong gets 400 and the reason.
template <typename Work>
void answer(httplib::Response& response, Work work) {
  json document;
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
  response.set_content(document.dump(), "application/json");
}

void add_routes(httplib::Server& server, Service& service) {
  using httplib::Request;
  using httplib::Response;
  server.Get("/adapters", [&](const Request&, Response& response) {
    answer(response, [&] { return service.adapters(); });
  });
  server.Put(R"(/adapters/([A-Za-z0-9][A-Za-z0-9._-]*))", [&](const Request& request, Response& response) {
    answer(response, [&] {
      service.load(request.matches[1], request.body);
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
    answer(response, [&] { return service.run(json::parse(request.body)); });
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::cerr << "usage: bundle_server BUNDLE [PORT]\n";
    return 2;
  }
  try {
    const Bundle bundle(arguments[1]);
    Service service(bundle);
    httplib::Server server;
    add_routes(server, service);
    const int wanted = count == 3 ? std::stoi(arguments[2]) : kDefaultPort;
    const int port = wanted == 0 ? server.bind_to_any_port("127.0.0.1") : wanted;
    if (wanted != 0 && !server.bind_to_port("127.0.0.1", port)) throw Fault({"the port is taken", std::to_string(port)});
    std::cout << "listening on http://127.0.0.1:" << port << std::endl;
    return server.listen_after_bind() ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
