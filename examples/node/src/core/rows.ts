/** Rows of tensors, and what was computed for those that came last. */
import { Tensor } from "onnxruntime-common";

import { measured } from "./bundle.js";
import type { Inputs } from "./request.js";

type Tensors = Record<string, Tensor>;

/** Some places along an axis, in this order. */
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

/** Tensors that are alike but for an axis, one behind the other along it. */
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

/** How often an axis is gone through, and how many numbers one place along it has. */
function strides(dims: readonly number[], axis: number): [outer: number, inner: number] {
  const product = (sizes: readonly number[]) => sizes.reduce((all, size) => all * size, 1);
  return [product(dims.slice(0, axis)), product(dims.slice(axis + 1))];
}

function resized(dims: readonly number[], axis: number, length: number): number[] {
  return dims.map((size, at) => (at === axis ? length : size));
}

/** A sha256 of all that a row of the inputs holds. */
export async function keyOf(inputs: Inputs, row: number): Promise<string> {
  const parts = Object.keys(inputs).sort().flatMap((name) => {
    const { data, dims } = taken(inputs[name]!, [row]) as Tensor & { data: Float32Array };
    return [new TextEncoder().encode(`${name} ${dims}`), new Uint8Array(data.buffer)];
  });
  return (await measured(new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer()))).sha256;
}

/** What became of the rows that could be kept. */
export interface PrefixCounts {
  hits: number;
  loads: number;
  evictions: number;
  resident: number;
}

/** What was computed for the rows that came last, up to a number of bytes. */
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

  /** Another call may have been faster: the first stays. The least recently used go. */
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
