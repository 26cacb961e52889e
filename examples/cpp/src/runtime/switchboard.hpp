// The graphs of a bundle as they are: the caller decides which rows share a call (`engine.hpp` does). Adapters are chosen
// in every call, and a session has no state, so any number of threads may run at once.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "graph.hpp"
#include "loaded_adapters.hpp"
#include "request.hpp"

constexpr float kMasked = -1e30F;  // in a bank, the logits of classes that a row's adapter does not have are below

// A graph with slots, with one adapter for the whole batch.
class Switchboard {
 public:
  Switchboard(const Bundle& bundle, const std::string& variant, int threads = 1);

  // The outputs of the base, and that of the adapter's head; null runs the base. `strength` scales what the adapter adds.
  // `weights`, once for all rows or once for each, replace those of a fusion. Both need an adapter whose tensors are fed.
  // Throws RequestFault if the inputs, the strength or the weights do not fit.
  Arrays run(const Arrays& inputs, const Loaded& adapter, double strength = 1, const std::vector<Weights>& weights = {}) const;

  // The tensors of an adapter that another strength than 1 changes. Throws RequestFault as above.
  Arrays scaled(const LoadedAdapter& adapter, double strength) const;

 private:
  Manifest manifest_;
  Graph graph_;
  Arrays neutral_;  // for graphs without defaults, where even doing nothing is fed
};

// The bank: an adapter for every row of the batch.
class Bank {
 public:
  explicit Bank(const Bundle& bundle, int threads = 1);

  // Logits of classes that a row's adapter does not have are below −1e30.
  // Throws RequestFault if there is no adapter of a name, or not one choice for each row.
  Arrays run(const Arrays& inputs, const std::vector<Choice>& rows) const;

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
  Arrays run(const Arrays& inputs, const std::vector<Choice>& adapters) const;

  // For each row of the outputs the row of the inputs that it continues, and its adapter; `values` are what `below` gave
  // for these inputs. Throws RequestFault if there is no such row or adapter, or not one adapter for each row.
  Arrays run(const Arrays& inputs, const Arrays& values, const std::vector<std::int64_t>& rows,
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

  Arrays run(const Arrays& inputs) const;

 private:
  Manifest manifest_;
  Graph graph_;
  Head head_;
};
