#include "recorded_runs.hpp"

#include <limits>

#include "files.hpp"

namespace {

constexpr const char* kProvider = "CPUExecutionProvider";  // the only one that sessions of this client have
constexpr const char* kBaked = "baked";
constexpr const char* kNoDigest = "its bits depend on the number of threads";

std::string difference_of(const RecordedRuns& recorded) {
  const std::string runtime = OrtGetApiBase()->GetVersionString();
  if (recorded.runtime == runtime && recorded.provider == kProvider) return {};
  return "recorded with onnxruntime " + recorded.runtime + ", " + recorded.provider + "; this is " + runtime + ", " + kProvider;
}

}  // namespace

RecordedComparison::RecordedComparison(const Bundle& bundle) : bundle_(bundle) {
  const auto& recorded = bundle.manifest().recorded;
  if (recorded) other_runtime_ = difference_of(*recorded);
}

std::vector<Finding> RecordedComparison::compare(const GraphRun& graph) {
  if (!bundle_.manifest().recorded) return {};
  const auto reason = other_runtime_.empty() ? distrust(graph) : other_runtime_;
  if (!reason.empty()) return {{kRecorded, std::nullopt, false, 0, graph.title, {}, reason}};
  std::vector<Finding> findings;
  for (const auto& adapter : graph.adapters) {
    const auto& recorded = bundle_.manifest().golden_of(adapter).recorded;
    const auto own = recorded.find(graph.variant);
    auto& found = findings.emplace_back(Finding{kRecorded, adapter, false, 0, graph.title});
    if (own == recorded.end()) found.reason = kNoDigest;
    // the base was compared to come here
    else if (adapter && digest(graph, adapter) != own->second) found.worst = std::numeric_limits<double>::infinity();
  }
  return findings;
}

// Why digests of adapters mean nothing in a graph; empty if the base has the recorded bits there.
std::string RecordedComparison::distrust(const GraphRun& graph) {
  if (graph.variant == kBaked) {
    return witnesses_.count("slots") || witnesses_.count("inputs") ? "" : "neither `slots` nor `inputs` shows that the base has the recorded bits";
  }
  const auto& recorded = bundle_.manifest().golden.recorded;
  const auto own = recorded.find(graph.variant);
  if (own == recorded.end()) return kNoDigest;
  if (digest(graph, std::nullopt) != own->second) {
    return "the base's bits differ here: another processor, or another build of ONNX Runtime";
  }
  witnesses_.insert(graph.variant);
  return {};
}

// Over all outputs that golden vectors have, sorted by name, one case after the other.
std::string RecordedComparison::digest(const GraphRun& graph, const Choice& adapter) const {
  const Golden golden(bundle_, adapter);
  std::string bytes;
  for (const auto& name : bundle_.manifest().recorded->cases) {
    const auto outputs = graph.run(golden.inputs(name), adapter);
    for (const auto& [output, _] : golden.record.absolute) {
      // digests are of whole outputs; those with sketches are the base's, which a bank does not widen
      const bool is_sketched = bundle_.manifest().sketches.count(output) > 0;
      const auto own = is_sketched ? outputs.at(output) : own_part(outputs.at(output), golden.output(name, output));
      bytes.append(reinterpret_cast<const char*>(own.bytes.data()), own.bytes.size());
    }
  }
  return sha256(bytes);
}
