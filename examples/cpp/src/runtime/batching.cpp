#include "batching.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "fault.hpp"
#include "request.hpp"

namespace {

std::vector<std::size_t> places(std::size_t first, std::size_t count) {
  std::vector<std::size_t> found(count);
  std::iota(found.begin(), found.end(), first);
  return found;
}

// Which places of an axis a mask hides: those where it is 0 whatever the places along its other axes.
std::vector<bool> hidden_places(const Array& mask, std::size_t axis) {
  const auto length = static_cast<std::size_t>(mask.shape[axis]);
  std::size_t inner = 1;
  for (std::size_t at = axis + 1; at < mask.shape.size(); ++at) inner *= static_cast<std::size_t>(mask.shape[at]);
  std::vector<bool> hidden(length, true);
  for (std::size_t at = 0; at < mask.count(); ++at) {
    if (is_set(mask, at)) hidden[at / inner % length] = false;
  }
  return hidden;
}

// An axis of tokens: of ids or a mask. The first axis, that of the rows, is none.
struct TokenAxis {
  Axis axis;
  std::string key;
  bool is_masked;
};

std::vector<TokenAxis> token_axes(const Manifest& manifest) {
  std::vector<TokenAxis> found;
  for (const auto& record : manifest.inputs) {
    for (std::size_t place = 1; place < record.axes.size(); ++place) {
      if (record.role != "ids" && record.role != "mask") continue;
      const auto key = axis_key(record.axes[place], place);
      auto known = std::find_if(found.begin(), found.end(), [&](const auto& each) { return each.key == key; });
      if (known == found.end()) known = found.insert(found.end(), {record.axes[place], key, false});
      known->is_masked |= record.role == "mask";
    }
  }
  return found;
}

// Change all arrays along an axis.
template <typename Change>
void along(Arrays& inputs, const Manifest& manifest, const std::string& key, Change change) {
  for (const auto& record : manifest.inputs) {
    for (std::size_t place = 1; place < record.axes.size(); ++place) {
      auto& array = inputs.at(record.name);
      if (axis_key(record.axes[place], place) == key) array = change(array, place);
    }
  }
}

// The part of an axis to keep: all of it where padding may stay, and is only after the tokens; else the tokens.
Cut cut_of(const Arrays& inputs, const Manifest& manifest, const TokenAxis& axis, bool may_pad) {
  std::optional<std::vector<bool>> hidden;  // by all masks that have the axis
  std::size_t given = 0;
  for (const auto& record : manifest.inputs) {
    for (std::size_t place = 1; place < record.axes.size(); ++place) {
      if (axis_key(record.axes[place], place) != axis.key) continue;
      given = static_cast<std::size_t>(inputs.at(record.name).shape[place]);
      if (record.role != "mask") continue;
      const auto own = hidden_places(inputs.at(record.name), place);
      if (!hidden) hidden = own;
      for (std::size_t at = 0; at < own.size(); ++at) (*hidden)[at] = (*hidden)[at] && own[at];
    }
  }
  if (!hidden) return {0, given, given};
  const auto first = std::find(hidden->begin(), hidden->end(), false) - hidden->begin();
  if (may_pad && first == 0) return {0, given, given};
  const auto last = hidden->rend() - std::find(hidden->rbegin(), hidden->rend(), false);
  return {static_cast<std::size_t>(first), static_cast<std::size_t>(last - first), given};
}

}  // namespace

bool counts_padding(const Manifest& manifest, const Arrays& tensors, const Arrays& others) {
  const auto& graphs = manifest.counts_padding;
  return std::any_of(manifest.slots.begin(), manifest.slots.end(), [&](const SlotRecord& slot) {
    if (std::find(graphs.begin(), graphs.end(), slot.graph) == graphs.end()) return false;
    const auto other = others.find(slot.name);
    return !is_neutral(other == others.end() ? tensors.at(slot.name) : other->second, slot);
  });
}

bool shares_calls(const Manifest& manifest) {
  if (manifest.inputs.empty() || manifest.inputs.front().axes.empty()) return false;
  const auto& rows = manifest.inputs.front().axes.front();
  const auto lengths = manifest.lengths_of(rows);
  const bool takes_any = lengths.minimum == 1 && lengths.multiple_of == 1 && !lengths.maximum && lengths.exceptions.empty();
  const auto has_rows = [&](const OutputRecord& output) { return !output.axes.empty() && output.axes.front().name == rows.name; };
  return manifest.batch_invariant && takes_any && std::all_of(manifest.outputs.begin(), manifest.outputs.end(), has_rows);
}

std::set<std::string> token_axis_keys(const Manifest& manifest) {
  std::set<std::string> keys;
  for (const auto& axis : token_axes(manifest)) keys.insert(axis.key);
  return keys;
}

FittedRow fitted(Arrays inputs, const Manifest& manifest, bool may_pad) {
  FittedRow row{std::move(inputs), {}};
  for (const auto& axis : token_axes(manifest)) {
    const auto cut = cut_of(row.inputs, manifest, axis, may_pad);
    const auto lengths = manifest.lengths_of(axis.axis);
    const auto target = lengths.at_least(static_cast<std::int64_t>(cut.kept));
    const bool fits = target && (static_cast<std::size_t>(*target) == cut.kept || (may_pad && axis.is_masked));
    if (!fits) {
      const std::string reason = target ? ", and padding would change its results" : "";
      throw RequestFault({"the base does not support the number of tokens of a text" + reason, "", std::to_string(cut.kept),
                          lengths.text(), "give rows of other lengths"});
    }
    if (cut.kept != cut.given || static_cast<std::size_t>(*target) != cut.kept) {
      along(row.inputs, manifest, axis.key, [&](const Array& array, std::size_t place) {
        return padded(taken(array, place, places(cut.before, cut.kept)), place, *target);
      });
    }
    row.cuts.emplace(axis.key, cut);
  }
  return row;
}

Array as_given(const Array& output, const OutputRecord& record, const FittedRow& row) {
  auto found = output;
  for (std::size_t place = 1; place < record.axes.size(); ++place) {
    const auto& axis = record.axes[place];
    // a number of two axes may be the width of a vector as well as that of the tokens
    if (axis.name.empty() && (place != 1 || record.axes.size() < 3)) continue;
    const auto known = row.cuts.find(axis_key(axis, place));
    if (known == row.cuts.end()) continue;
    const auto& cut = known->second;
    if (static_cast<std::int64_t>(cut.kept) != found.shape[place]) found = taken(found, place, places(0, cut.kept));
    if (cut.before > 0) {
      Shape shape = found.shape;
      shape[place] = static_cast<std::int64_t>(cut.before);
      const auto zeros = make_array(found.dtype, shape);
      found = joined({&zeros, &found}, place);
    }
    found = padded(found, place, static_cast<std::int64_t>(cut.given));
  }
  return found;
}
