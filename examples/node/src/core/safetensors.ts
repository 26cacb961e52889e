/** The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors. */
import { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/** The tensors of a file; throws a Fault if the bytes break the format. */
export function parseSafetensors(bytes: Uint8Array, where: string): Map<string, Tensor> {
  try {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    if (length > bytes.length - 8) throw new Error("the header is cut off");
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))) as Record<string, Entry>;
    delete header["__metadata__"];
    const body = bytes.subarray(8 + length);
    checkSpans(Object.values(header), body.length);
    return new Map(Object.entries(header).map(([name, entry]) => [name, tensor(entry, body)]));
  } catch (error) {
    const fix = "get the file from its source again";
    throw new Fault({ what: "is no safetensors file, or is damaged", where, found: String(error), fix });
  }
}

/** Throws if tensors overlap, leave gaps, or do not end with the file. */
function checkSpans(entries: Entry[], size: number): void {
  let at = 0;
  const spans = entries.map((entry) => entry.data_offsets).sort(([a, b], [c, d]) => a - c || b - d);
  for (const [begin, end] of spans) {
    if (begin !== at || !(end >= begin)) throw new Error("tensors overlap, or there is a gap between them");
    at = end;
  }
  if (at !== size) throw new Error(at > size ? "a tensor is cut off" : "bytes are left over");
}

function tensor({ dtype, shape, data_offsets: [begin, end] }: Entry, body: Uint8Array): Tensor {
  const { buffer } = new Uint8Array(body.subarray(begin, end)); // a copy: typed arrays begin at a multiple of their size
  return typed(dtype, buffer, shape); // which throws if the shape does not fit the bytes
}

function typed(dtype: string, buffer: ArrayBuffer, shape: number[]): Tensor {
  switch (dtype) {
    case "F32":
      return new Tensor("float32", new Float32Array(buffer), shape);
    case "I64":
      return new Tensor("int64", new BigInt64Array(buffer), shape);
    case "I32":
      return new Tensor("int32", new Int32Array(buffer), shape);
    case "I8":
      return new Tensor("int8", new Int8Array(buffer), shape);
    case "BOOL":
      return new Tensor("bool", new Uint8Array(buffer), shape);
    default:
      throw new Error(`the type ${dtype} is not known here`);
  }
}
