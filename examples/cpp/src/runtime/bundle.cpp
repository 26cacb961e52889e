#include "bundle.hpp"

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "fault.hpp"
#include "safetensors.hpp"

namespace fs = std::filesystem;

namespace {

std::pair<int, int> release(const std::string& version) {
  std::pair<int, int> found{0, 0};
  std::sscanf(version.c_str(), "%d.%d", &found.first, &found.second);
  return found;
}

}  // namespace

Bundle::Bundle(const fs::path& folder)
    : folder_(folder), manifest_(read_manifest(folder)), private_(std::make_shared<PrivateFolder>()) {
  const std::string runtime = OrtGetApiBase()->GetVersionString();
  if (release(runtime) < release(manifest_.minimum_onnxruntime)) {
    throw Fault({"needs a newer ONNX Runtime", folder.string(), runtime, manifest_.minimum_onnxruntime + " or newer"});
  }
  for (const auto& file : manifest_.files) {
    const bool is_mapped = fs::path(file.path).parent_path().empty();  // graphs, and the weights beside them
    verify_file(folder, file.path, file.bytes, file.sha256, is_mapped ? inside(private_->path(), file.path) : "");
  }
}

fs::path Bundle::graph(const std::string& variant) const {
  const auto found = manifest_.graphs.find(variant);
  if (found == manifest_.graphs.end()) {
    throw Fault({"has no graph of variant `" + variant + "`", folder_.string(), "", "",
                 "build it with `--variants " + variant + "`"});
  }
  return graph_at(found->second);
}

fs::path Bundle::graph_at(const std::string& path) const { return inside(private_->path(), path); }

fs::path Bundle::path(const std::string& path) const { return inside(folder_, path); }

std::string Bundle::read(const std::string& file) const {
  auto bytes = read_file(path(file));
  const auto& files = manifest_.files;
  const auto record = std::find_if(files.begin(), files.end(), [&](const auto& each) { return each.path == file; });
  if (record == files.end() || sha256(bytes) != record->sha256) {  // what is hashed is what is used
    throw Fault({"has been changed since the bundle was opened", path(file).string()});
  }
  return bytes;
}

void Bundle::check_nothing_else() const {
  for (auto entry = fs::recursive_directory_iterator(folder_); entry != fs::recursive_directory_iterator(); ++entry) {
    const auto name = entry->path().lexically_relative(folder_).generic_string();
    const auto& files = manifest_.files;
    const bool is_hidden = entry->path().filename().string().front() == '.';  // systems put such files there
    // the manifest, and what is made from it: the signature, the report of a check, and the model card
    const bool is_unlisted = name == "manifest.json" || name == "model.sig" || name == "check.json" || name == "README.md";
    if (is_hidden) entry.disable_recursion_pending();
    if (is_hidden || is_unlisted || (entry->is_directory() && !entry->is_symlink())) continue;
    if (std::none_of(files.begin(), files.end(), [&](const auto& file) { return file.path == name; })) {
      throw Fault({"is not listed in the manifest", entry->path().string(), "", "", "take it out of the bundle"});
    }
  }
}

Arrays Bundle::tensors(const std::string& file) const { return parse_safetensors(read(file), path(file).string()); }
