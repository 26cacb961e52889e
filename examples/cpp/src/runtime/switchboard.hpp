// Adapters, chosen anew in every call. Nothing here is a state of a session: any number of threads may run at once,
// with loads and unloads in between.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "adapter_file.hpp"
#include "bundle.hpp"
#include "graph.hpp"
#include "request.hpp"

enum class Feeding {
  native,  // ONNX Runtime's own adapters, for the flavour `slots`; those in fewer bits than float32 are fed
  plain,   // the adapter's tensors as inputs of the call, for the flavours `slots` and `inputs`
};

// What a row runs through: an adapter, and how many times what it adds is added.
struct ScaledAdapter {
  Choice name;
  double strength = 1;

  bool operator<(const ScaledAdapter& other) const {
    return name != other.name ? name < other.name : strength < other.strength;
  }
};

constexpr float kMasked = -1e30F;  // in a bank, the logits of classes that a row's adapter does not have are below

struct Outcome {
  Arrays outputs;           // those of the base, and those of the rows' heads
  std::vector<Head> heads;  // for each row that of the very adapter that ran
  bool is_masked = false;   // whether logits of classes that a row's adapter does not have are below kMasked
};

// The graphs with slots, one adapter for the whole batch.
class Switchboard {
 public:
  // All adapters of the bundle are loaded.
  Switchboard(const Bundle& bundle, const std::string& flavour, Feeding feeding, int threads = 1);

  // With weights, those of a fusion, in the place of its own, once for all rows or once for each; where its tensors are
  // fed, since an active adapter holds these slots already.
  // Throws RequestFault if the adapter is not loaded, or the inputs or the weights do not fit.
  Outcome run(const Arrays& inputs, const Choice& adapter, const std::vector<Weights>& weights = {}) const;

  // Each row through an adapter at a strength; those that are alike share a call. Where adapters are fed, but at strength 1.
  // Logits of classes that a row's adapter does not have are below −1e30.
  // Throws RequestFault as above, and if an adapter has no strength, or not one choice is there for each row.
  Outcome run(const Arrays& inputs, const std::vector<ScaledAdapter>& rows) const;

  // Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle.
  // Throws RequestFault if it was not, if its head cannot do what is said of it, or if an adapter of this name is loaded.
  void load(const std::string& name, const std::string& bytes, const Claim& claim = {});

  // Forget an adapter; calls that run with it at this moment end well.
  void unload(const std::string& name);

  std::vector<std::string> adapters() const;
  std::optional<Task> task(const std::string& name) const;

  // Whether an adapter is the one of this name that came with the bundle, and so the one that a bank holds.
  bool is_built_in(const std::string& name) const;

 private:
  struct Resident {
    Head head;
    bool built_in;
    std::optional<MixRecord> mix;
    Arrays tensors;                    // what is fed …
    Ort::LoraAdapter native{nullptr};  // … or what is active, but never both
  };

  Outcome run_held(const Arrays& inputs, const Resident* held, const Arrays& others) const;
  Arrays scaled(const Resident& held, const ScaledAdapter& adapter) const;
  AdapterFile checked(const std::string& bytes, const std::string& where) const;
  Resident made(Resident resident, const std::string& bytes, bool is_widened) const;
  std::shared_ptr<const Resident> resident(const std::string& name) const;
  void keep(const std::string& name, Resident resident);

  Manifest manifest_;
  Graph graph_;
  Feeding feeding_;
  Arrays neutral_;  // for graphs without defaults, where even doing nothing is fed
  mutable std::shared_mutex mutex_;
  std::map<std::string, std::shared_ptr<const Resident>> residents_;
};

// The bank: an adapter for every row of the batch.
class Bank {
 public:
  explicit Bank(const Bundle& bundle, int threads = 1);

  // Logits of classes that a row's adapter does not have are below −1e30.
  // Throws RequestFault if there is no adapter of a name, or not one choice for each row.
  Outcome run(const Arrays& inputs, const std::vector<Choice>& rows) const;

 private:
  Manifest manifest_;
  Graph graph_;
};

// What became of the rows that could be kept.
struct PrefixCounts {
  std::size_t hits = 0, loads = 0, evictions = 0, resident = 0;
};

// What was computed for the rows that came last, up to a number of bytes; any number of threads may use it.
class PrefixCache {
 public:
  explicit PrefixCache(std::size_t limit) : limit_(limit) {}

  using Values = std::shared_ptr<const Arrays>;

  // None if they are not there.
  Values find(const std::string& key);
  // Another thread may have been faster: the first stays. The least recently used go.
  void keep(const std::string& key, Values values);
  PrefixCounts counts() const;

 private:
  using Kept = std::list<std::pair<std::string, Values>>;

  std::size_t limit_, bytes_ = 0;
  Kept kept_;  // the most recently used first
  std::map<std::string, Kept::iterator> places_;
  PrefixCounts counts_;
  mutable std::mutex mutex_;
};

// Any number of adapters for each row of the inputs, which is computed once up to the first of them.
class Fanout {
 public:
  // What `below` gives for a row is kept in so many bytes, for calls with this very row, its padding and mask included.
  // Throws Fault if rows would be kept that influence each other.
  explicit Fanout(const Bundle& bundle, int threads = 1, std::size_t prefix_bytes = 0);

  // What no adapter has a part in. It may be kept, for calls with these very inputs.
  Arrays below(const Arrays& inputs) const;

  // Each row through an adapter of its own.
  Outcome run(const Arrays& inputs, const std::vector<Choice>& adapters) const;

  // For each row of the outputs the row of the inputs that it continues, and its adapter; `values` are what `below` gave
  // for these inputs. Throws RequestFault if there is no such row or adapter, or not one adapter for each row.
  Outcome run(const Arrays& inputs, const Arrays& values, const std::vector<std::int64_t>& rows,
              const std::vector<Choice>& adapters) const;

  PrefixCounts prefixes() const { return kept_ ? kept_->counts() : PrefixCounts{}; }

 private:
  Arrays computed(const Arrays& inputs) const;

  Manifest manifest_;
  Graph lower_, upper_;
  std::unique_ptr<PrefixCache> kept_;
};

// A graph in which an adapter is constant, for a device that needs one only.
class Baked {
 public:
  Baked(const Bundle& bundle, const std::string& adapter, int threads = 1);

  Outcome run(const Arrays& inputs) const;

 private:
  Manifest manifest_;
  Graph graph_;
  Head head_;
};
