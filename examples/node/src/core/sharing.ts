/**
 * Decides which rows share a call, and which are padded: docs/reference/format.md, "What may share a call".
 *
 * This client pads a row only to reach a length in `lengths`, never to the length of another row.
 */
import { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import { type Axis, type Manifest, isAllowed, lengthsOf, lengthsText, nextLength } from "./manifest.js";
import { type Inputs, isNeutral } from "./request.js";
import { joined, taken } from "./rows.js";

/** Where the tokens of a row are along an axis, which has `size` places. */
interface Extent {
  axis: Axis;
  first: number;
  /** The place after the last token. */
  end: number;
  size: number;
}

/** A row `[1, …]` as the graph takes it. */
export interface Arranged {
  inputs: Inputs;
  /** Of each axis that was changed, where the tokens were before; in `inputs` they begin at 0. */
  moved: Extent[];
}

/** Whether padding after a row's tokens leaves its result unchanged; `tensors` are those of its adapter, null for the base. */
export function mayPad({ padding_neutral, counts_padding, slots }: Manifest, tensors: Map<string, Tensor> | null): boolean {
  if (!padding_neutral) return false;
  return !slots.some((slot) => tensors && counts_padding.includes(slot.graph) && !isNeutral(tensors.get(slot.name)!, slot));
}

/**
 * Remove padding before the tokens, and any padding that would change the result. A row that may be padded keeps its length: the
 * padding moves after the tokens. Throws a Fault if the row would have a length that the base does not take.
 */
export function withoutPadding(inputs: Inputs, manifest: Manifest, pads: boolean): Arranged {
  const moved = extentsOf(inputs, manifest).filter(({ first, end, size }) => first > 0 || (end < size && !pads));
  let found = inputs;
  for (const { axis, first, end, size } of moved) {
    const places = Array.from({ length: pads ? size : end - first }, (_, place) => (place + first) % size);
    if (!isAllowed(places.length, lengthsOf(manifest, axis))) throw otherLength(places.length, manifest, axis);
    found = mapped(found, manifest, axis, (tensor, at) => taken(tensor, places, at));
  }
  return { inputs: found, moved };
}

/**
 * Pad a row, which has no padding, to the next length that the base takes. Throws a Fault if there is none, or if padding would
 * change the result.
 */
export function padded(inputs: Inputs, manifest: Manifest, pads: boolean): Arranged {
  const moved: Extent[] = [];
  let found = inputs;
  for (const extent of extentsOf(inputs, manifest)) {
    const width = nextLength(extent.size, lengthsOf(manifest, extent.axis));
    if (width === extent.size) continue;
    if (width === undefined || !pads) throw otherLength(extent.size, manifest, extent.axis, width !== undefined);
    moved.push(extent);
    found = mapped(found, manifest, extent.axis, (tensor, at) => joined([tensor, zeros(tensor, at, width - extent.size)], at));
  }
  return { inputs: found, moved };
}

/** An output of a row `[1, …]` with its tokens where the row had them, and 0 at padding that was removed. */
export function restored(output: Tensor, axes: Axis[], moved: Extent[]): Tensor {
  return moved.reduce((found, { axis, first, end, size }) => {
    const at = axes.indexOf(axis, 1); // of a fixed length: the axis of the tokens is the first of this length
    if (at < 0) return found;
    const tokens = taken(found, range(end - first), at);
    return joined([zeros(found, at, first), tokens, zeros(found, at, size - end)], at);
  }, output);
}

/** The places of the rows of each call. */
export function calls(rows: Inputs[], { batch_invariant, inputs: records, outputs }: Manifest): number[][] {
  const batch = records[0]!.axes[0];
  const divides = typeof batch === "string" && outputs.every(({ axes }) => axes[0] === batch);
  if (!batch_invariant || !divides) return range(rows.length).map((row) => [row]);
  const found = new Map<string, number[]>();
  for (const [row, inputs] of rows.entries()) {
    const shape = JSON.stringify(Object.entries(inputs).map(([name, { dims }]) => [name, dims]).sort());
    found.set(shape, [...(found.get(shape) ?? []), row]);
  }
  return [...found.values()];
}

/** The tokens along each axis that has a mask `[batch, tokens]`. */
function extentsOf(inputs: Inputs, { inputs: records }: Manifest): Extent[] {
  return records.flatMap(({ name, role, axes }) => {
    if (role !== "mask" || axes.length !== 2) return [];
    const real = Array.from(inputs[name]!.data as ArrayLike<unknown>, (number) => Number(number) !== 0);
    const first = real.indexOf(true);
    return first < 0 ? [] : [{ axis: axes[1]!, first, end: real.lastIndexOf(true) + 1, size: real.length }];
  });
}

function mapped(inputs: Inputs, { inputs: records }: Manifest, axis: Axis, change: (tensor: Tensor, at: number) => Tensor): Inputs {
  const changed = records.map(({ name, axes }) => {
    const at = axes.indexOf(axis, 1);
    return [name, at < 0 ? inputs[name]! : change(inputs[name]!, at)] as const;
  });
  return Object.fromEntries(changed);
}

function zeros({ type, data, dims }: Tensor, axis: number, length: number): Tensor {
  const shape = dims.map((size, at) => (at === axis ? length : size));
  const size = shape.reduce((product, each) => product * each, 1);
  return new Tensor(type, new (data.constructor as Float32ArrayConstructor)(size), shape) as Tensor;
}

function range(length: number): number[] {
  return Array.from({ length }, (_, at) => at);
}

function otherLength(found: number, manifest: Manifest, axis: Axis, changes = true): Fault {
  const what = "the base does not support the number of tokens of a text" + (changes ? ", and padding would change its result" : "");
  return new Fault({ what, found: `${found}`, expected: lengthsText(lengthsOf(manifest, axis)), fix: "give rows of other lengths" });
}
