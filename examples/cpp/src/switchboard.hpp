// Adapters, chosen anew in every call. Nothing here is a state of a session: any number of threads may run at once,
// with loads and unloads in between.
#pragma once

#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "graph.hpp"

using Choice = std::optional<std::string>;  // an adapter, or none: the base as it is

enum class Feeding {
  native,  // ONNX Runtime's own adapters, for the flavour `slots`
  plain,   // the adapter's tensors as inputs of the call, for the flavours `slots` and `inputs`
};

// The graphs with slots, one adapter for the whole batch.
class Switchboard {
 public:
  // All adapters of the bundle are loaded.
  Switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, int threads = 1);

  // Throws RequestFault if the adapter is not loaded or the inputs do not fit.
  Arrays run(const Arrays& inputs, const Choice& adapter) const;

  // Load an adapter from the bytes of a safetensors file with a tensor for every slot.
  void load(const std::string& name, const std::string& bytes, std::vector<std::string> labels);

  // Forget an adapter; calls that run with it at this moment end well.
  void unload(const std::string& name);

  std::vector<std::string> adapters() const;
  std::vector<std::string> labels(const std::string& name) const;

 private:
  struct Resident {
    Arrays tensors;
    Ort::LoraAdapter native{nullptr};
    std::vector<std::string> labels;
    std::vector<std::string> outputs;
  };

  std::shared_ptr<const Resident> resident(const std::string& name) const;
  void keep(const std::string& name, std::shared_ptr<const Resident> resident);

  Manifest manifest_;
  Graph graph_;
  Feeding feeding_;
  Resident base_;
  mutable std::shared_mutex mutex_;
  std::map<std::string, std::shared_ptr<const Resident>> residents_;
};

// The bank: an adapter for every row of the batch.
class Bank {
 public:
  explicit Bank(const Bundle& bundle, int threads = 1);

  // Throws RequestFault if there is no adapter of a name, or not one choice for each row.
  Arrays run(const Arrays& inputs, const std::vector<Choice>& rows) const;

 private:
  std::int64_t id(const Choice& adapter) const;

  Manifest manifest_;
  Graph graph_;
};

// A graph in which an adapter is constant, for a device that needs one only.
class Baked {
 public:
  Baked(const Bundle& bundle, const std::string& adapter, int threads = 1);

  Arrays run(const Arrays& inputs) const;

 private:
  Manifest manifest_;
  Graph graph_;
  std::vector<std::string> outputs_;
};
