// The adapters of a bundle, and those loaded beside them at run time. Any number of threads may use them at once, with
// loads and unloads in between.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "adapter_file.hpp"
#include "bundle.hpp"
#include "request.hpp"

enum class Feeding {
  native,  // ONNX Runtime's own adapters, for the variant `slots`; those in fewer bits than float32 are fed
  plain,   // the adapter's tensors as inputs of the call, for the variants `slots` and `inputs`
};

struct LoadedAdapter {
  std::string name;
  Head head;
  bool built_in;                     // it came with the bundle, so a bank holds it
  bool counts_padding;               // whether it acts in a graph of `counts_padding`, at the strength 1
  std::optional<MixRecord> mix;
  Arrays tensors;                    // what is fed …
  Ort::LoraAdapter native{nullptr};  // … or what is active, but never both
};

using Loaded = std::shared_ptr<const LoadedAdapter>;  // null: the base

class LoadedAdapters {
 public:
  // Load all adapters of the bundle.
  LoadedAdapters(const Bundle& bundle, Feeding feeding);

  // The adapter of this name, which lives as long as the pointer; null for the base. Throws RequestFault if it is not loaded.
  Loaded find(const Choice& name) const;

  // The adapter that a call names; none for `base`, where no adapter has this name. Throws RequestFault if it names none
  // although adapters beside the base head have tasks.
  Choice named(const Choice& name) const;

  std::vector<std::string> names() const;
  // How many adapters were loaded beside those of the bundle.
  std::size_t loaded_beside() const;

  // Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle.
  // Throws RequestFault if it was not, if its head cannot do what is said of it, or if an adapter of this name is loaded.
  void load(const std::string& name, const std::string& bytes, const Claim& claim = {});

  // Forget an adapter. Calls that run with it at this moment finish.
  void unload(const std::string& name);

 private:
  AdapterFile checked(const std::string& bytes, const std::string& where) const;
  void keep(const std::string& name, Head head, bool built_in, std::optional<MixRecord> mix, AdapterFile file,
            const std::string& bytes);

  Manifest manifest_;
  Feeding feeding_;
  mutable std::shared_mutex mutex_;
  std::map<std::string, Loaded> adapters_;
};
