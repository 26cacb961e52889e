/** Nested lists to tensors. */
import { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import type { InputRecord, Manifest } from "./manifest.js";
import type { Inputs } from "./request.js";
import { taken } from "./rows.js";

/** Parse a batch, such as `{"input_ids": [[101, 102], [101, 102]]}`, into its rows `[1, …]`. */
export function inputRows(document: unknown, manifest: Manifest): Inputs[] {
  const batch = Object.entries(parseInputs(document, manifest));
  const counts = new Set(batch.map(([, { dims }]) => dims[0] ?? 0));
  if (counts.size > 1) {
    const found = batch.map(([name, { dims }]) => `\`${name}\` [${dims.join(", ")}]`).join(", ");
    throw new Fault({ what: "inputs with different numbers of rows have a wrong shape", found });
  }
  const rows = Array.from({ length: [...counts][0] ?? 0 }, (_, row) => row);
  return rows.map((row) => Object.fromEntries(batch.map(([name, tensor]) => [name, taken(tensor, [row])])));
}

/** Parse nested lists into tensors of the types in the manifest; their shapes are checked later. */
export function parseInputs(document: unknown, manifest: Manifest): Inputs {
  const lists = Object.entries(Object(document));
  return Object.fromEntries(
    lists.map(([name, list]) => {
      const record = manifest.inputs.find((each) => each.name === name);
      if (!record) throw new Fault({ what: "the graph has no such input", where: `\`${name}\`` });
      return [name, tensorOf(list, record)];
    }),
  );
}

function tensorOf(list: unknown, { name, dtype }: InputRecord): Tensor {
  const dims: number[] = [];
  for (let at = list; Array.isArray(at); at = at[0]) dims.push(at.length);
  const numbers = flat(list, dims, `\`${name}\``);
  if (dtype !== "float32" && !numbers.every(Number.isSafeInteger)) {
    throw new Fault({ what: "an input contains invalid numbers of its type", where: `\`${name}\``, expected: dtype });
  }
  if (dtype === "int64") return new Tensor(dtype, BigInt64Array.from(numbers, BigInt), dims);
  if (dtype === "int32") return new Tensor(dtype, Int32Array.from(numbers), dims);
  return dtype === "bool" ? new Tensor(dtype, Uint8Array.from(numbers, Number), dims) : new Tensor(dtype, numbers, dims);
}

function flat(list: unknown, [size, ...rest]: number[], where: string): number[] {
  if (size === undefined) {
    if (typeof list !== "number") throw new Fault({ what: "an input holds what is no number", where, found: String(list) });
    return [list];
  }
  if (!Array.isArray(list) || list.length !== size) {
    throw new Fault({ what: "rows of different lengths", where, expected: "lists of one length; pad them" });
  }
  return list.flatMap((each) => flat(each, rest, where));
}
