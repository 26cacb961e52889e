/**
 * Sketches of wide outputs, and inputs made from a seed: golden data contain neither in full (docs/reference/format.md, "Sketches").
 */
import { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import { type InputRecord, type SketchRecord, sketchSize } from "./manifest.js";

/** The elements of a filled input; a few bytes of a file may not ask for more. */
const LARGEST_FILL = 2 ** 26;

/**
 * The sketch of a float32 output: for each of its rows the largest numbers, chosen columns, and signed sums over all of them. NaN
 * and infinity stay in it. Throws a Fault if the output has no such rows.
 */
export function sketch(output: Tensor, record: SketchRecord, name: string): Tensor {
  const { largest, columns, moduli } = record;
  const [outer, width, size] = [output.dims.slice(0, record.axes), widthOf(output, record, name), sketchSize(record)];
  const rows = output.size / width;
  const [data, numbers] = [output.data as Float32Array, new Float32Array(rows * size)];
  const rowAt = (row: number) => data.subarray(row * width, (row + 1) * width);
  for (let row = 0; row < rows; row++) {
    numbers.set(largestOf(rowAt(row), largest), row * size);
    for (let at = 0; at < columns; at++) numbers[row * size + largest + at] = rowAt(row)[mix(row * columns + at) % width]!;
  }
  let offset = largest + columns;
  for (const [sum, modulus] of moduli.entries()) {
    const signs = signsOf(sum, width); // the same for all rows
    for (let row = 0; row < rows; row++) numbers.set(sumsOf(rowAt(row), signs, modulus), row * size + offset);
    offset += modulus;
  }
  return new Tensor("float32", numbers, [...outer, size]);
}

/** An input that a seed and a shape describe: multiples of 1/64 in [-2, 2). Throws a Fault if there can be no such input. */
export function filled(seedAndShape: Tensor, input: InputRecord, where: string): Tensor {
  const [{ type, dims }, length] = [seedAndShape, input.axes.length + 1];
  if (input.dtype !== "float32" || type !== "int64" || dims.length !== 1 || dims[0] !== length) {
    const [found, expected] = [`${type} [${dims}] for ${input.dtype}`, `int64 [${length}] for float32`];
    throw new Fault({ what: "is not a seed followed by the shape of a float input", where, found, expected });
  }
  const [seed, ...shape] = Array.from(seedAndShape.data as BigInt64Array, Number) as [number, ...number[]];
  if (seed < 0 || seed >= 2 ** 32) throw new Fault({ what: "has a seed out of range", where, found: `${seed}`, expected: "0 to 2^32 - 1" });
  const count = shape.reduce((product, length) => product * length, 1);
  if (shape.some((length) => length < 0) || count > LARGEST_FILL) {
    const expected = "lengths from 0, at most 2^26 elements together";
    throw new Fault({ what: "has a shape out of range", where, found: `[${shape}]`, expected });
  }
  return new Tensor("float32", Float32Array.from({ length: count }, (_, at) => (mix(seed + at) >>> 24) / 64 - 2), shape);
}

/** The numbers of a row. */
function widthOf(output: Tensor, { axes }: SketchRecord, name: string): number {
  const width = output.dims.slice(axes).reduce((product, length) => product * length, 1);
  if (output.type === "float32" && output.dims.length > axes && width > 0) return width;
  const found = `${output.type} [${output.dims}]`;
  const expected = `float32 with numbers behind ${axes} axes`;
  throw new Fault({ what: "does not fit its sketch in the manifest", where: `output \`${name}\``, found, expected });
}

/** In descending order, the last one repeated if the row has fewer. NaN comes first, so that it is not lost. */
function largestOf(row: Float32Array, most: number): Float32Array {
  const count = Math.min(most, row.length);
  const found = new Float32Array(most).fill(-Infinity);
  if (count === 0) return found;
  for (let column = 0; column < row.length; column++) {
    const value = row[column]!;
    if (value <= found[count - 1]!) continue; // almost all
    let at = count;
    while (at > 0 && isBefore(value, found[at - 1]!)) at--;
    if (at < count) found.copyWithin(at + 1, at, count - 1)[at] = value;
  }
  return found.fill(found[count - 1]!, count);
}

function isBefore(one: number, other: number): boolean {
  return one > other || (Number.isNaN(one) && !Number.isNaN(other));
}

/** A sum for each remainder of the columns by a modulus, scaled to the order of a single number. */
function sumsOf(row: Float32Array, signs: Float64Array, modulus: number): Float64Array {
  const sums = new Float64Array(modulus);
  for (let first = 0; first < row.length; first += modulus) {
    const count = Math.min(modulus, row.length - first);
    for (let at = 0; at < count; at++) sums[at]! += signs[first + at]! * row[first + at]!;
  }
  const scale = 2 * Math.sqrt(Math.ceil(row.length / modulus));
  return sums.map((total) => total / scale);
}

/** The signs of all columns in one of the sums. */
function signsOf(sum: number, width: number): Float64Array {
  const seed = mix(sum + 1);
  return Float64Array.from({ length: width }, (_, column) => (mix(seed + column) >>> 31 ? -1 : 1));
}

/** A hash of 32-bit integers in which each bit of the argument changes about half of the bits of the result. */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}
