#include "sketch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "fault.hpp"

namespace {

constexpr std::size_t kLargestFill = std::size_t{1} << 26;  // elements: a few bytes of a file may not ask for more

// A hash of 32-bit integers in which each bit of the argument changes about half of the bits of the result.
std::uint32_t mix(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  return x ^ x >> 16;
}

// The signs of all columns in one of the sums.
std::vector<double> signs_of(std::size_t sum, std::size_t width) {
  const auto seed = mix(static_cast<std::uint32_t>(sum) + 1);
  std::vector<double> signs(width);
  for (std::size_t column = 0; column < width; ++column) {
    signs[column] = mix(seed + static_cast<std::uint32_t>(column)) >> 31 ? -1 : 1;
  }
  return signs;
}

// In descending order, the last one repeated if the row has fewer. NaN comes first, so that it is not lost.
void write_largest(const float* row, std::size_t width, std::size_t count, float* target) {
  const auto before = [](float one, float other) { return std::isnan(one) ? !std::isnan(other) : one > other; };
  auto* const end = std::partial_sort_copy(row, row + width, target, target + count, before);
  if (end != target) std::fill(end, target + count, end[-1]);
}

// Other columns in each row.
void write_columns(const float* row, std::size_t width, std::size_t index, std::size_t count, float* target) {
  for (std::size_t at = 0; at < count; ++at) {
    target[at] = row[mix(static_cast<std::uint32_t>(index * count + at)) % width];
  }
}

// A sum for each remainder of the columns by a modulus, scaled to the order of a single number.
void write_sums(const float* row, const std::vector<double>& signs, std::size_t modulus, float* target) {
  std::vector<double> sums(modulus);
  for (std::size_t first = 0; first < signs.size(); first += modulus) {
    const auto count = std::min(modulus, signs.size() - first);
    for (std::size_t at = 0; at < count; ++at) sums[at] += signs[first + at] * row[first + at];
  }
  const auto terms = (signs.size() + modulus - 1) / modulus;
  const auto scale = 2 * std::sqrt(static_cast<double>(terms));
  std::transform(sums.begin(), sums.end(), target, [scale](double sum) { return static_cast<float>(sum / scale); });
}

// The rows of an output: how many there are, and the numbers in each.
struct Rows {
  std::size_t count = 1, width = 1;
};

Rows rows_of(const Array& output, const SketchRecord& record, const std::string& name) {
  Rows rows;
  for (std::size_t axis = 0; axis < output.shape.size(); ++axis) {
    (axis < record.axes ? rows.count : rows.width) *= static_cast<std::size_t>(output.shape[axis]);
  }
  if (output.dtype == "float32" && output.shape.size() > record.axes && rows.width > 0) return rows;
  throw Fault({"does not fit its sketch in the manifest", "output `" + name + "`", output.dtype + " " + to_text(output.shape),
               "float32 with numbers behind " + std::to_string(record.axes) + " axes"});
}

// The elements of a shape, if there may be so many.
std::optional<std::size_t> count_of(const Shape& shape) {
  std::size_t count = 1;
  for (const auto size : shape) {
    const auto length = static_cast<std::size_t>(size);
    if (size < 0 || (length > 0 && count > kLargestFill / length)) return std::nullopt;
    count *= length;
  }
  return count;
}

}  // namespace

Array sketch(const Array& output, const SketchRecord& record, const std::string& name) {
  const auto rows = rows_of(output, record, name);
  Shape shape(output.shape.begin(), output.shape.begin() + static_cast<std::ptrdiff_t>(record.axes));
  shape.push_back(static_cast<std::int64_t>(record.size()));
  Array result = make_array("float32", shape);
  const auto row_at = [&](std::size_t row) { return output.data<float>() + row * rows.width; };
  const auto target_at = [&](std::size_t row) { return result.data<float>() + row * record.size(); };
  for (std::size_t row = 0; row < rows.count; ++row) {
    write_largest(row_at(row), rows.width, record.largest, target_at(row));
    write_columns(row_at(row), rows.width, row, record.columns, target_at(row) + record.largest);
  }
  auto offset = record.largest + record.columns;
  for (std::size_t sum = 0; sum < record.moduli.size(); ++sum) {
    const auto signs = signs_of(sum, rows.width);  // the same for all rows
    for (std::size_t row = 0; row < rows.count; ++row) write_sums(row_at(row), signs, record.moduli[sum], target_at(row) + offset);
    offset += record.moduli[sum];
  }
  return result;
}

Array filled(const Array& seed_and_shape, const InputRecord& input, const std::string& where) {
  const auto length = static_cast<std::int64_t>(input.axes.size()) + 1;
  if (input.dtype != "float32" || seed_and_shape.dtype != "int64" || seed_and_shape.shape != Shape{length}) {
    const auto found = seed_and_shape.dtype + " " + to_text(seed_and_shape.shape) + " for " + input.dtype;
    throw Fault({"is not a seed followed by the shape of a float input", where, found, "int64 " + to_text({length}) + " for float32"});
  }
  const auto* numbers = seed_and_shape.data<std::int64_t>();
  if (numbers[0] < 0 || numbers[0] > std::numeric_limits<std::uint32_t>::max()) {
    throw Fault({"has a seed out of range", where, std::to_string(numbers[0]), "0 to 2^32 - 1"});
  }
  const Shape shape(numbers + 1, numbers + length);
  const auto count = count_of(shape);
  if (!count) {
    throw Fault({"has a shape out of range", where, to_text(shape), "lengths from 0, at most 2^26 elements together"});
  }
  Array array = make_array("float32", shape);
  for (std::size_t at = 0; at < *count; ++at) {
    array.data<float>()[at] = static_cast<float>(mix(static_cast<std::uint32_t>(numbers[0] + at)) >> 24) / 64 - 2;
  }
  return array;
}
