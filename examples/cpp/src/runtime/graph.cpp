#include "graph.hpp"

#include <cstdlib>

#include "fault.hpp"

namespace {

Ort::Env& environment() {
  // onnxruntime 1.29 and later report models and machines to Microsoft, unless this is set before the first environment
  static const int off = setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  (void)off;
  // onnxruntime warns once for each tensor that can be overridden; here that is what is wanted
  static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "adapter-bundle");
  return env;
}

Ort::Session opened(const std::filesystem::path& path, int threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // threads that wait leave the processor to others
  // a sum and a norm, or a sum and a GELU, take longer in one kernel than in two
  options.AddConfigEntry("optimization.disable_specified_optimizers", "SkipLayerNormFusion;BiasGeluFusion");
  try {
    return Ort::Session(environment(), path.c_str(), options);
  } catch (const Ort::Exception& error) {
    throw Fault({"ONNX Runtime cannot load the graph", path.string(), error.what()});
  }
}

std::vector<const char*> pointers(const std::vector<std::string>& names) {
  std::vector<const char*> found;
  for (const auto& name : names) found.push_back(name.c_str());
  return found;
}

}  // namespace

Graph::Graph(const std::filesystem::path& path, int threads) : session_(opened(path, threads)) {
  Ort::AllocatorWithDefaultOptions allocator;
  for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
    outputs_.emplace_back(session_.GetOutputNameAllocated(i, allocator).get());
  }
}

Arrays Graph::run(const Feeds& feeds, std::vector<std::string> outputs, const Ort::LoraAdapter* active) const {
  if (outputs.empty()) outputs = outputs_;
  std::vector<std::string> names;
  std::vector<Ort::Value> values;
  for (const auto& [name, array] : feeds) {
    names.push_back(name);
    values.push_back(view(*array));
  }
  Ort::RunOptions options;
  options.SetRunLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // what fails is thrown; it need not be logged as well
  if (active != nullptr) options.AddActiveLoraAdapter(*active);  // one at most: of two with one tensor, one would win
  Arrays found;
  try {
    const auto results = session_.Run(options, pointers(names).data(), values.data(), values.size(),
                                      pointers(outputs).data(), outputs.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) found.emplace(outputs[i], copy_of(results[i]));
  } catch (const Ort::Exception& error) {
    throw RequestFault({"ONNX Runtime cannot compute these inputs", "", error.what()});
  }
  return found;
}

std::optional<std::string> Graph::metadata(const std::string& key) const {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto found = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(key.c_str(), allocator);
  return found ? std::optional<std::string>(found.get()) : std::nullopt;
}
