/**
 * ONNX Runtime's own adapter files, `.onnx_adapter`: a flatbuffer with named tensors and the number of the graph that
 * they were made for (onnxruntime/lora/adapter_format/adapter_schema.fbs). Node and browsers cannot hand it to ONNX
 * Runtime, but it says more than a safetensors file: whether it belongs to this bundle.
 */
import { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";

export interface AdapterFile {
  modelVersion: number;
  tensors: Map<string, Tensor>;
}

const IDENTIFIER = "TORT";
const FORMAT_VERSION = 1;
const [FLOAT, INT8, FLOAT16] = [1, 3, 10]; // the types of ONNX
const SCALE = ".scale"; // suffix of the name of an int8 tensor's factors

/** The fields, by their numbers in the schema: of the file, and of a tensor in it. */
const [FORMAT, MODEL_VERSION, PARAMETERS] = [0, 2, 3];
const [NAME, DIMS, TYPE, DATA] = [0, 1, 2, 3];

/** Parse an adapter file. Throws a Fault if the bytes are not one, or are damaged. */
export function parseAdapterFile(bytes: Uint8Array, where: string): AdapterFile {
  try {
    return parse(new Flatbuffer(bytes));
  } catch (error) {
    const [what, found] = ["is no ONNX Runtime adapter file, or is damaged", String(error)];
    throw new Fault({ what, where, found, fix: "give an `.onnx_adapter` file that was built for this bundle" });
  }
}

function parse(buffer: Flatbuffer): AdapterFile {
  if (buffer.text(4, 4) !== IDENTIFIER) throw new Error(`no \`${IDENTIFIER}\` at byte 4`);
  const root = buffer.target(0);
  const format = buffer.int32(root, FORMAT);
  if (format !== FORMAT_VERSION) throw new Error(`format version ${format}`);
  const tensors = new Map<string, Tensor>();
  const integers: string[] = [];
  for (const place of buffer.tables(root, PARAMETERS)) {
    const name = new TextDecoder("utf-8", { fatal: true }).decode(buffer.vector(place, NAME, 1));
    if (tensors.has(name)) throw new Error(`\`${name}\` twice`);
    const type = buffer.int32(place, TYPE);
    if (type === INT8) integers.push(name);
    const dims = Array.from(new BigInt64Array(buffer.vector(place, DIMS, 8).buffer), Number);
    tensors.set(name, new Tensor("float32", numbers(buffer.vector(place, DATA, 1).buffer, type, name), dims));
  }
  for (const name of integers) scale(tensors.get(name) as Tensor, tensors.get(name + SCALE), name);
  for (const name of integers) tensors.delete(name + SCALE);
  return { modelVersion: buffer.int32(root, MODEL_VERSION), tensors };
}

/** Numbers in float32; int8 without its scale. */
function numbers(buffer: ArrayBuffer, type: number, name: string): Float32Array {
  if (type === FLOAT) return new Float32Array(buffer);
  if (type === FLOAT16) return Float32Array.from(new Uint16Array(buffer), widened);
  if (type === INT8) return Float32Array.from(new Int8Array(buffer));
  throw new Error(`\`${name}\` is not float32, float16 or int8`);
}

/** A float16 as the same number (IEEE 754). */
function widened(half: number): number {
  const [exponent, mantissa] = [(half >> 10) & 0x1f, half & 0x3ff];
  const size = exponent === 0x1f ? (mantissa ? NaN : Infinity) : (exponent ? mantissa + 1024 : mantissa) * 2 ** (Math.max(exponent, 1) - 25);
  return half >> 15 ? -size : size;
}

/** Multiplies integers by the factors for their places along the last axis, [1, …, out]; that is exact. */
function scale(tensor: Tensor, factors: Tensor | undefined, name: string): void {
  const last = tensor.dims.length - 1;
  const dims = tensor.dims.map((size, axis) => (axis === last ? size : 1));
  if (factors?.dims.join() !== dims.join()) throw new Error(`\`${name}\` has no scale that fits`);
  const [data, by] = [tensor.data as Float32Array, factors.data as Float32Array];
  for (let at = 0; at < data.length; at++) data[at] = (data[at] as number) * (by[at % by.length] as number);
}

/** A flatbuffer; every reading outside of it throws. Tables have numbered fields, found by a table of their offsets. */
class Flatbuffer {
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  text(at: number, length: number): string {
    return new TextDecoder().decode(this.bytes.subarray(at, at + length));
  }

  /** The target of the offset at this position. */
  target(at: number): number {
    return at + this.view.getUint32(at, true);
  }

  int32(table: number, field: number): number {
    const at = this.field(table, field);
    return at === null ? 0 : this.view.getInt32(at, true);
  }

  /** The bytes of a vector, in memory of their own, so that they may be seen as numbers. */
  vector(table: number, field: number, elementBytes: number): Uint8Array<ArrayBuffer> {
    const { first, count } = this.span(table, field);
    const end = first + count * elementBytes;
    if (end > this.bytes.length) throw new RangeError("a tensor is cut off");
    return new Uint8Array(this.bytes.subarray(first, end));
  }

  tables(table: number, field: number): number[] {
    const { first, count } = this.span(table, field);
    if (first + 4 * count > this.bytes.length) throw new RangeError("the list of tensors is cut off");
    return Array.from({ length: count }, (_, at) => this.target(first + 4 * at));
  }

  private span(table: number, field: number): { first: number; count: number } {
    const at = this.field(table, field);
    if (at === null) throw new Error("a tensor without name, shape or data");
    const start = this.target(at);
    return { first: start + 4, count: this.view.getUint32(start, true) };
  }

  private field(table: number, field: number): number | null {
    const offsets = table - this.view.getInt32(table, true);
    const place = 4 + 2 * field;
    if (place >= this.view.getUint16(offsets, true)) return null;
    const offset = this.view.getUint16(offsets + place, true);
    return offset === 0 ? null : table + offset;
  }
}
