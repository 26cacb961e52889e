// The way from rows to answers. The command line, the service, the C interface and the replay of golden texts and batches
// all take it, so that they give the same answers.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "answers.hpp"
#include "switchboard.hpp"

// One row of a request, whatever the other rows are.
struct Row {
  Arrays inputs;                   // [1, …] for each input of the graph
  Choice adapter = {};             // none: the base, or its base head
  double strength = 1;             // how many times what the adapter adds is added
  Weights weights = {};            // of a fusion's members; empty: its own
  std::vector<bool> context = {};  // of a span: for each token whether it may be the answer
};

// Any number of threads may use it at once, while adapters are loaded and unloaded.
class Engine {
 public:
  // `prefix_bytes`: memory for cached activations below all adapters; more than 0 needs a bundle with the graph
  // `fanout`. Throws Fault if the bundle has none, or its rows influence each other.
  explicit Engine(const Bundle& bundle, int threads = 1, std::size_t prefix_bytes = 0);

  // The answers to rows, in their order. Throws RequestFault if one of them cannot be answered.
  std::vector<Answer> answer(const std::vector<Row>& rows) const;

  // What `answer` makes answers of.
  std::vector<RowResult> run(const std::vector<Row>& rows) const;

  // The task by which a row is answered, if it is known.
  std::optional<Task> task(const Choice& adapter) const;

  LoadedAdapters& adapters() { return adapters_; }
  const LoadedAdapters& adapters() const { return adapters_; }

  // Open the graphs that the first call that needs them would open.
  void open_all() const;

  PrefixCounts prefixes() const { return fanout_ ? fanout_->prefixes() : PrefixCounts{}; }

 private:
  struct Prepared {
    const Row* row;
    Loaded adapter;
    double strength;
    FittedRow fitted;

    bool is_weighted() const { return !row->weights.empty(); }
    // Whether it may run in a graph whose adapters are rows, which holds them as they were built.
    bool is_plain() const { return !adapter || (adapter->built_in && strength == 1 && !is_weighted()); }
  };

  Prepared prepared(const Row& row) const;
  std::vector<std::vector<std::size_t>> calls(const std::vector<Prepared>& rows) const;
  void compute(const std::vector<Prepared>& rows, const std::vector<std::size_t>& call, std::vector<RowResult>& results) const;
  const Switchboard& slots() const;
  const Bank& bank() const;

  Bundle bundle_;
  int threads_;
  LoadedAdapters adapters_;
  std::set<std::string> token_axes_;
  std::unique_ptr<Fanout> fanout_;
  // each by the first call that needs it: a session holds the base's weights once more
  mutable std::once_flag slots_are_open_, bank_is_open_;
  mutable std::unique_ptr<Switchboard> slots_;
  mutable std::unique_ptr<Bank> bank_;
};
