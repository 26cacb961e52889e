// The manifest of a bundle: what a client needs to know, as data (schemas/bundle-manifest.schema.json).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

// The length of an axis: a number, or the name of a dynamic axis such as `batch` (then `size` is 0).
struct Axis {
  std::int64_t size = 0;
  std::string name = {};
};

struct InputRecord {
  std::string name;
  std::string dtype;
  std::vector<Axis> axes;
  std::optional<std::int64_t> limit;  // valid ids are 0 to limit − 1
};

struct OutputRecord {
  std::string name;
  std::vector<Axis> axes;
};

struct SlotRecord {
  std::string name;
  std::string scope;  // the site and the graph at it: free axes of one name and scope have one length
  std::vector<Axis> axes;
  std::vector<std::int64_t> neutral;  // the shape with which it does nothing …
  float neutral_value = 0;            // … when it is filled with this number
};

struct GoldenRecord {
  std::string path;
  std::vector<std::string> cases;
  std::map<std::string, double> absolute;  // the allowed deviation of every output
};

struct AdapterRecord {
  std::string name;
  std::vector<std::string> labels;  // none for an adapter without classes
  std::string onnx_adapter;
  std::string safetensors;
  std::string baked;  // the graph in which it is constant; empty if there is none
  GoldenRecord golden;
};

struct BankRecord {
  std::string ids;                               // the input that chooses a row of the bank for each row of the batch
  std::string weights;                           // the input that mixes them, in the flavour `mixture`
  std::vector<std::optional<std::string>> rows;  // which adapter each row holds; the base where there is none
};

struct FileRecord {
  std::string path;
  std::string sha256;
  std::uintmax_t bytes = 0;
};

struct Manifest {
  std::string minimum_onnxruntime;
  bool batch_invariant = true;
  std::map<std::string, std::string> graphs;  // the ONNX file of each flavour
  std::vector<InputRecord> inputs;
  std::vector<OutputRecord> outputs;
  std::vector<SlotRecord> slots;
  std::vector<AdapterRecord> adapters;
  std::optional<BankRecord> bank;
  GoldenRecord golden;
  std::vector<FileRecord> files;

  // The adapter of this name. Throws RequestFault if there is none.
  const AdapterRecord& adapter(const std::string& name) const;

  // The golden vectors of an adapter, or of the base.
  const GoldenRecord& golden_of(const std::optional<std::string>& adapter) const;
};

// Read `manifest.json`. Throws Fault if it is missing, breaks the format, or is of a newer major version.
Manifest read_manifest(const std::filesystem::path& folder);
