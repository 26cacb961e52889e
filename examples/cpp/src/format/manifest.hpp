// The manifest of a bundle: what a client needs to know, as data (schemas/bundle-manifest.schema.json).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "task.hpp"

using Choice = std::optional<std::string>;  // an adapter, or none: the base as it is

// The length of an axis: a number, or the name of a dynamic axis such as `batch` (then `size` is 0).
struct Axis {
  std::int64_t size = 0;
  std::string name = {};
};

// A name for an axis that is the same in all arrays: that of the axis, or its number and its place.
std::string axis_key(const Axis& axis, std::size_t place);

// The lengths that an axis may have: multiples of a number between two ends, without some.
struct Lengths {
  std::int64_t minimum = 1;
  std::optional<std::int64_t> maximum = {};
  std::int64_t multiple_of = 1;
  std::vector<std::int64_t> exceptions = {};

  bool has(std::int64_t length) const;
  // The smallest allowed length that is at least `length`, if any.
  std::optional<std::int64_t> at_least(std::int64_t length) const;
  // Such as `64 to 512, multiples of 8, but not 72`.
  std::string text() const;
};

struct InputRecord {
  std::string name;
  std::string dtype;
  std::vector<Axis> axes;
  std::string role;                   // `ids`, `mask` or `values`
  std::optional<std::int64_t> limit;  // valid ids are 0 to limit − 1
};

struct OutputRecord {
  std::string name;
  std::vector<Axis> axes;
};

// How golden data represent an output that is too wide for them. A row is what the first `axes` axes leave.
struct SketchRecord {
  std::size_t axes = 1;
  std::size_t largest = 0;                // the largest numbers of a row
  std::size_t columns = 0;                // numbers of a row at chosen columns
  std::vector<std::size_t> moduli = {};   // signed sums over the columns of each remainder by each of these

  // The numbers that represent a row.
  std::size_t size() const;
};

struct SlotRecord {
  std::string name;
  std::string site;   // `head` for those of heads
  std::string graph;  // free axes of one name, site and graph have one length
  std::string parameter;  // of that graph
  std::vector<Axis> axes;
  std::vector<std::int64_t> neutral;  // the shape with which it does nothing …
  float neutral_value = 0;            // … when it is filled with this number
};

// A fault in applying an adapter, and how an output shows it.
struct PartRecord {
  std::string fault;   // such as `layers.5.ffn off`
  std::string output;
  double factor = 0;   // makes the sum of weight · (found − expected) 1 for the fault
  double limit = 0;    // the largest absolute value that passes
};

// Golden parts of an adapter.
struct PartsRecord {
  std::string path;
  std::vector<std::string> cases;
  std::vector<PartRecord> parts;
};

struct GoldenRecord {
  std::string path;
  std::vector<std::string> cases;
  std::map<std::string, double> absolute;  // the allowed deviation of every output
  std::optional<PartsRecord> parts = {};   // none where golden vectors tell every fault
  std::map<std::string, std::string> recorded = {};  // by variant, or `baked`: the sha256 of what came out at the build
};

// Where the runs were made whose digests golden vectors have.
struct RecordedRuns {
  std::string runtime;  // the version of ONNX Runtime
  std::string provider;
  std::vector<std::string> cases;
};

// What comes out of an adapter besides the base's outputs.
struct Head {
  std::string output;        // the output that holds its result; empty for an adapter without a head
  std::optional<Task> task;  // meaning of the result; absent if unknown
};

// A topology of head.
struct HeadRecord {
  std::string graph;   // which slots of the site `head` give as theirs
  std::string output;  // what it fills
  std::string result;  // what that holds: `logits`, `token_logits`, `embedding` or `token_embeddings`
};

// The weights that a call may give a fusion: the same go to all slots, and column k weighs member k.
struct MixRecord {
  std::vector<std::string> slots;
  std::vector<std::string> members;
};

struct AdapterRecord {
  std::string name;
  Head head;
  std::string onnx_adapter;
  std::string safetensors;
  std::string baked;  // the graph in which it is constant; empty if there is none
  GoldenRecord golden;
  std::optional<MixRecord> mix;  // absent unless the adapter is a weighted fusion
};

struct BankRecord {
  std::string ids;           // the input that chooses a row of the bank for each row of the batch
  std::vector<Choice> rows;  // which adapter each row holds; the base where there is none
  std::vector<std::string> tensors;  // their names
};

// What crosses from the lower graph of a fan-out to the upper one.
struct FanoutValue {
  std::string name;
  std::size_t batch;  // which of its axes has the rows of the inputs
};

// The bank in two graphs, below and above its first adapter: a row is computed once up to there, for all adapters.
struct FanoutRecord {
  std::string prefix;  // the file of the lower graph
  std::string rows;    // the input of the upper one that chooses a row of the inputs for each of its rows
  std::vector<FanoutValue> values;
};

struct FileRecord {
  std::string path;
  std::string sha256;
  std::uintmax_t bytes = 0;
};

struct Manifest {
  std::string minimum_onnxruntime;
  bool batch_invariant = true;
  bool padding_neutral = false;  // whether tokens that a mask hides change nothing in the base
  std::vector<std::string> counts_padding;  // the graphs of adapters in which such tokens change something
  std::map<std::string, std::string> graphs;  // the ONNX file of each variant
  std::vector<InputRecord> inputs;
  std::map<std::string, Lengths> lengths;  // by the name of an axis; one that is not here may have any
  std::vector<OutputRecord> outputs;
  std::map<std::string, SketchRecord> sketches;  // by the output of the base that golden data do not contain in full
  std::vector<HeadRecord> heads;
  std::vector<SlotRecord> slots;
  std::vector<AdapterRecord> adapters;
  Choice head;  // the adapter that is the base head: it answers where none is chosen
  std::optional<BankRecord> bank;
  std::optional<FanoutRecord> fanout;
  GoldenRecord golden;
  std::string tokenizer_digest;  // of the tokenizer that texts go through; empty if it is not known
  std::string golden_texts;      // the file with texts, their ids and their answers; empty if there is none
  std::string golden_batches;    // the file with requests of several rows and their answers; empty if there is none
  std::string checksums;         // the output with a checksum of each slot's tensor, no part of a result; empty if none
  std::string media;             // what the base reads through a processor, `image` or `audio`; empty if nothing
  std::vector<std::string> media_files;
  std::vector<std::string> chat_files;  // how conversations become prompts; this client continues no prompts
  std::optional<RecordedRuns> recorded;  // none where no runs were recorded
  std::int64_t model_version = 0;  // that of every adapter file for this graph
  std::vector<FileRecord> files;

  // The lengths of an axis: of a number that alone.
  Lengths lengths_of(const Axis& axis) const;

  // The adapter of this name. Throws RequestFault if there is none.
  const AdapterRecord& adapter(const std::string& name) const;
  bool has(const std::string& name) const;

  // Who answers where this is chosen: for the base its base head, if it has one.
  Choice answering(const Choice& adapter) const { return adapter ? adapter : head; }

  // The golden vectors of an adapter, or of the base.
  const GoldenRecord& golden_of(const Choice& adapter) const;
};

// Read `manifest.json`. Throws Fault if it is missing, breaks the format, or is of a newer version with something that
// is not known here.
Manifest read_manifest(const std::filesystem::path& folder);
