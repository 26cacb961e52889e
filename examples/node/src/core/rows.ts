/** Rows of tensors, and a cache of what was computed for the latest ones. */
import { Tensor } from "onnxruntime-common";

import { measured } from "./bundle.js";
import type { Inputs } from "./request.js";

type Tensors = Record<string, Tensor>;

/** The values at some places along an axis, in this order. */
export function taken(tensor: Tensor, places: number[], axis = 0): Tensor {
  const [outer, inner] = strides(tensor.dims, axis);
  const data = tensor.data as Float32Array;
  const found = new (data.constructor as Float32ArrayConstructor)(outer * places.length * inner);
  let target = 0;
  for (let at = 0; at < outer; at++) {
    for (const place of places) {
      const first = (at * tensor.dims[axis]! + place) * inner;
      found.set(data.subarray(first, first + inner), target);
      target += inner;
    }
  }
  return new Tensor(tensor.type, found, resized(tensor.dims, axis, places.length)) as Tensor;
}

export function takenRows(tensors: Tensors, places: number[]): Tensors {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, taken(tensor, places)]));
}

/** Rows of inputs `[1, …]` as one batch. */
export function joinedRows(rows: Inputs[]): Inputs {
  if (rows.length === 1) return rows[0]!;
  return Object.fromEntries(Object.keys(rows[0]!).map((name) => [name, joined(rows.map((row) => row[name]!), 0)]));
}

/** Tensors one after the other along an axis, the only one whose length may differ. */
export function joined(parts: Tensor[], axis: number): Tensor {
  const [{ dims, type, data }] = parts as [Tensor];
  const length = parts.reduce((sum, part) => sum + part.dims[axis]!, 0);
  const [outer, inner] = strides(dims, axis);
  const found = new (data.constructor as Float32ArrayConstructor)(outer * length * inner);
  let target = 0;
  for (let at = 0; at < outer; at++) {
    for (const part of parts) {
      const own = part.dims[axis]! * inner;
      found.set((part.data as Float32Array).subarray(at * own, (at + 1) * own), target);
      target += own;
    }
  }
  return new Tensor(type, found, resized(dims, axis, length)) as Tensor;
}

/** The number of repetitions of an axis, and the number of values at each of its places. */
function strides(dims: readonly number[], axis: number): [outer: number, inner: number] {
  const product = (sizes: readonly number[]) => sizes.reduce((all, size) => all * size, 1);
  return [product(dims.slice(0, axis)), product(dims.slice(axis + 1))];
}

function resized(dims: readonly number[], axis: number, length: number): number[] {
  return dims.map((size, at) => (at === axis ? length : size));
}

/** The sha256 of a row of the inputs. */
export async function keyOf(inputs: Inputs, row: number): Promise<string> {
  const parts = Object.keys(inputs).sort().flatMap((name) => {
    const { data, dims } = taken(inputs[name]!, [row]) as Tensor & { data: Float32Array };
    return [new TextEncoder().encode(`${name} ${dims}`), new Uint8Array(data.buffer)];
  });
  return (await measured(new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer()))).sha256;
}

/** The counters of a cache of rows. */
export interface PrefixCounts {
  hits: number;
  loads: number;
  evictions: number;
  resident: number;
}

/** What was computed for the latest rows, up to a number of bytes. */
export class PrefixCache {
  private readonly kept = new Map<string, Tensors>(); // the least recently used first
  private bytes = 0;
  private readonly counted = { hits: 0, loads: 0, evictions: 0 };

  constructor(private readonly limit: number) {}

  get counts(): PrefixCounts {
    return { ...this.counted, resident: this.kept.size };
  }

  find(key: string): Tensors | undefined {
    const found = this.kept.get(key);
    if (!found) return undefined;
    this.counted.hits += 1;
    this.kept.delete(key);
    this.kept.set(key, found);
    return found;
  }

  /** Of two calls that computed the same row, the first is kept. The least recently used rows are evicted. */
  keep(key: string, values: Tensors): void {
    this.counted.loads += 1;
    if (this.kept.has(key)) return;
    this.kept.set(key, values);
    this.bytes += sizeOf(values);
    for (const [old, held] of this.kept) {
      if (this.bytes <= this.limit) return;
      this.kept.delete(old);
      this.bytes -= sizeOf(held);
      this.counted.evictions += 1;
    }
  }
}

function sizeOf(tensors: Tensors): number {
  return Object.values(tensors).reduce((bytes, { data }) => bytes + (data as Float32Array).byteLength, 0);
}
