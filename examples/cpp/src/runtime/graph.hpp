// One ONNX graph in one session. Any number of threads may run it at once.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"

using Feeds = std::map<std::string, const Array*>;

class Graph {
 public:
  explicit Graph(const std::filesystem::path& path, int threads = 1);

  // Compute some outputs, every one if none are named. With `active`, its tensors stand for the defaults of the slots.
  // Throws RequestFault if ONNX Runtime cannot compute these inputs.
  Arrays run(const Feeds& feeds, std::vector<std::string> outputs, const Ort::LoraAdapter* active = nullptr) const;

  // The value of a key in the graph's metadata, if any.
  std::optional<std::string> metadata(const std::string& key) const;

 private:
  mutable Ort::Session session_;
  std::vector<std::string> outputs_;
};
