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
const FLOAT = 1;

/** The fields, by their numbers in the schema: of the file, and of a tensor in it. */
const [FORMAT, MODEL_VERSION, PARAMETERS] = [0, 2, 3];
const [NAME, DIMS, TYPE, DATA] = [0, 1, 2, 3];

/** What the bytes of a file hold; throws a Fault if they are no such file, or are damaged. */
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
  for (const place of buffer.tables(root, PARAMETERS)) {
    const name = new TextDecoder("utf-8", { fatal: true }).decode(buffer.vector(place, NAME, 1));
    if (tensors.has(name)) throw new Error(`\`${name}\` twice`);
    if (buffer.int32(place, TYPE) !== FLOAT) throw new Error(`\`${name}\` is not float32`);
    const dims = Array.from(new BigInt64Array(buffer.vector(place, DIMS, 8).buffer), Number);
    tensors.set(name, new Tensor("float32", new Float32Array(buffer.vector(place, DATA, 1).buffer), dims));
  }
  return { modelVersion: buffer.int32(root, MODEL_VERSION), tensors };
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

  /** Where an offset that stands here points to. */
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
