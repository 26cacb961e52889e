// A bundle on disk: every file is held against its hash when it is opened. Graphs and weights, which ONNX Runtime maps,
// are copied on the way: what is written into the bundle later changes nothing.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "arrays.hpp"
#include "files.hpp"
#include "manifest.hpp"

class Bundle {
 public:
  // Throws Fault if a file is missing, damaged or outside the folder, or onnxruntime is too old for the graphs.
  explicit Bundle(const std::filesystem::path& folder);

  // Throws Fault if something lies in the folder that the manifest does not list.
  void check_nothing_else() const;

  const Manifest& manifest() const { return manifest_; }

  // The private file of a graph, by its variant or its path. Throws Fault if the bundle was built without this variant.
  std::filesystem::path graph(const std::string& variant) const;
  std::filesystem::path graph_at(const std::string& path) const;

  // A file of the bundle, and the tensors in one; read now, and held against the hash once more.
  std::string read(const std::string& path) const;
  Arrays tensors(const std::string& path) const;

 private:
  std::filesystem::path path(const std::string& path) const;

  std::filesystem::path folder_;
  Manifest manifest_;
  std::shared_ptr<const PrivateFolder> private_;
};
