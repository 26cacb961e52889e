/** Checks inputs and adapters against the manifest before ONNX Runtime sees them. */
import { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import {
  type Axis,
  HEAD,
  type HeadRecord,
  type InputRecord,
  type Manifest,
  type MixRecord,
  type SlotRecord,
  isAllowed,
  lengthsOf,
  lengthsText,
} from "./manifest.js";
import { type Task, checkWidth, resultOf } from "./task.js";

export type Inputs = Record<string, Tensor>;

/** Throws a Fault if an input is missing, unknown, empty, of a wrong type, shape or length, or has ids out of range. */
export function checkInputs(inputs: Inputs, manifest: Manifest): void {
  const sizes = new Map<string, number>();
  for (const record of manifest.inputs) {
    const tensor = inputs[record.name];
    const where = `\`${record.name}\``;
    if (!tensor) throw new Fault({ what: "an input is missing", where });
    if (tensor.type !== record.dtype) {
      throw new Fault({ what: "an input has a wrong type", where, found: tensor.type, expected: record.dtype });
    }
    if (!fits(tensor.dims, record.axes, sizes)) {
      const expected = `[${record.axes.join(", ")}], at least 1 along each axis, equal where the name is`;
      throw new Fault({ what: "an input has a wrong shape", where, found: `[${tensor.dims.join(", ")}]`, expected });
    }
    checkLengths(tensor.dims, record, manifest);
    checkIds(tensor, record);
    if (record.role === "mask" && record.dtype !== "float32") checkMask(tensor, where);
  }
  const unknown = Object.keys(inputs).filter((name) => !manifest.inputs.some((record) => record.name === name));
  if (unknown.length) throw new Fault({ what: "inputs that the graph does not have", found: unknown.join(", ") });
}

/** Throws a Fault that lists every tensor of an adapter that is missing, left over, misshapen, or not finite. */
export function checkAdapter(tensors: Map<string, Tensor>, manifest: Manifest, where: string): void {
  const known = new Set(manifest.slots.map((slot) => slot.name));
  const inputs = new Set(manifest.inputs.map((input) => input.name));
  const others = [...tensors.keys()].filter((name) => !known.has(name));
  const faults = others.map((name) => `\`${name}\` is ${inputs.has(name) ? "the name of a data input" : "left over"}`);
  const sizes = new Map<string, number>();
  for (const slot of manifest.slots) {
    const tensor = tensors.get(slot.name);
    if (!tensor) faults.push(`\`${slot.name}\` is missing`);
    else if (tensor.type !== "float32" || !fits(tensor.dims, axesOf(slot, tensor), sizes, `${slot.site}/${slot.graph}/`)) {
      faults.push(`\`${slot.name}\` is ${tensor.type} [${tensor.dims.join(", ")}]`);
    } else if (!(tensor.data as Float32Array).every(Number.isFinite)) faults.push(`\`${slot.name}\` holds NaN or Inf`);
  }
  const fix = "build the adapter for this bundle";
  if (faults.length) throw new Fault({ what: "does not fit this bundle's graph", where, found: faults.join("; "), fix });
}

/** Throws a Fault if an adapter file was made for another base, or for a graph with other slots or activations. */
export function checkModelVersion(version: number, manifest: Manifest, where: string): void {
  const expected = manifest.model_version;
  if (version === expected) return;
  const [what, fix] = ["was made for another bundle", "build the adapter for this bundle"];
  throw new Fault({ what, where, found: `model version ${version}`, expected: `${expected}`, fix });
}

/** The prediction head of an adapter. */
export interface Head {
  /** The output with its result; null for an adapter without a head. */
  output: string | null;
  /** The meaning of the result; null if unknown. */
  task: Task | null;
}

export const NO_HEAD: Head = { output: null, task: null };

/**
 * The head that an adapter fills, by its tensors, or by its record if the head has none.
 * Throws a Fault if it fills several, or if the head does not fit the task.
 */
export function headOf(tensors: Map<string, Tensor>, manifest: Manifest, { output, task }: Head, where: string): Head {
  const head = filledHead(tensors, manifest, where) ?? manifest.heads.find((each) => each.output === output) ?? null;
  if (task === null) return { output: head?.output ?? null, task };
  const expected = resultOf(task.type);
  if (head?.result !== expected) {
    throw new Fault({ what: `has no head for \`${task.type}\``, where, found: head?.result ?? "no head", expected });
  }
  const slot = manifest.slots.find(({ site, graph, axes }) => site === HEAD && graph === head.graph && axes.includes("classes"));
  if (slot) checkWidth(task, tensors.get(slot.name)!.dims[slot.axes.indexOf("classes")]!, where);
  return { output: head.output, task };
}

/** The head whose slots are not neutral; null if all are. */
function filledHead(tensors: Map<string, Tensor>, manifest: Manifest, where: string): HeadRecord | null {
  const filled = manifest.slots.filter((slot) => slot.site === HEAD && !isNeutral(tensors.get(slot.name)!, slot));
  const found = manifest.heads.filter((head) => filled.some((slot) => slot.graph === head.graph));
  if (found.length > 1) throw new Fault({ what: "fills several heads", where });
  return found[0] ?? null;
}

/** The axes that a tensor must have: a neutral one may be shorter along axes that are numbers. */
function axesOf(slot: SlotRecord, tensor: Tensor): Axis[] {
  if (!isNeutral(tensor, slot)) return slot.axes;
  return slot.axes.map((axis, at) => (typeof axis === "number" ? slot.neutral[at]! : axis));
}

/** Whether a tensor leaves its slot as it is in the base. */
export function isNeutral(tensor: Tensor, slot: SlotRecord): boolean {
  const value = Math.fround(slot.neutral_value ?? 0);
  return String(tensor.dims) === String(slot.neutral) && (tensor.data as Float32Array).every((number) => number === value);
}

/**
 * The tensors of a fusion's weights, which replace those of the adapter.
 * Throws a Fault if it is not a fusion, or a member has no finite weight.
 *
 * @param rows weights by the names of the members, once for all rows of the batch or once for each.
 */
export function weightTensors(mix: MixRecord | null, rows: Record<string, number>[], where: string): Map<string, Tensor> {
  if (!mix) throw new Fault({ what: "has no weights that a call could give", where, expected: "a weighted fusion of the bundle" });
  const { members, slots } = mix;
  for (const row of rows) {
    const isWhole = Object.keys(row).length === members.length && members.every((name) => Number.isFinite(Math.fround(row[name]!)));
    if (isWhole) continue;
    const expected = members.map((name) => `\`${name}\``).join(", ");
    throw new Fault({ what: "a fusion needs a finite weight for each of its members", where, found: JSON.stringify(row), expected });
  }
  const numbers = Float32Array.from(rows.flatMap((row) => members.map((name) => row[name]!)));
  const tensor = new Tensor("float32", numbers, [rows.length, members.length]);
  return new Map(slots.map((slot) => [slot, tensor]));
}

/** For each graph at sites, the parameters that scale what it adds; null if it cannot be scaled. */
export type StrengthParameters = Record<string, string[] | null>;

/** A larger factor is an error of units. */
const STRONGEST = 1000;

/**
 * The tensors of an adapter that change when its updates are multiplied by `strength`; heads are not scaled.
 * Throws a Fault if what the adapter computes is not a sum with such an update.
 */
export function scaledTensors(
  tensors: Map<string, Tensor>,
  manifest: Manifest,
  parameters: StrengthParameters,
  strength: number,
  where: string,
): Map<string, Tensor> {
  const busy = manifest.slots.filter((slot) => slot.site !== HEAD && !isNeutral(tensors.get(slot.name)!, slot));
  return new Map(
    busy.flatMap((slot) => {
      const scaled = parameters[slot.graph];
      if (!scaled) {
        const what = "has no strength: what it computes is not what it replaces plus an update that can be scaled";
        const fix = "leave the strength out for this adapter";
        throw new Fault({ what, where: `${where}, graph \`${slot.graph}\``, expected: "strength 1", fix });
      }
      const [own, neutral] = [tensors.get(slot.name)!, Math.fround(slot.neutral_value ?? 0)];
      const numbers = () => (own.data as Float32Array).map((number) => neutral + strength * (number - neutral));
      return scaled.includes(slot.parameter) ? [[slot.name, new Tensor("float32", numbers(), own.dims)] as const] : [];
    }),
  );
}

/** Throws a Fault if a number is not a strength. */
export function checkStrength(strength: number): void {
  if (typeof strength === "number" && strength >= -STRONGEST && strength <= STRONGEST) return;
  const expected = `a number from ${-STRONGEST} to ${STRONGEST}`;
  throw new Fault({ what: "is no strength", where: "`strength`", found: String(strength), expected });
}

/** The tensors with which the graph is the base. */
export function neutralTensors(manifest: Manifest): Map<string, Tensor> {
  return new Map(
    manifest.slots.map((slot) => {
      const count = slot.neutral.reduce((product, size) => product * size, 1);
      const numbers = new Float32Array(count).fill(slot.neutral_value ?? 0);
      return [slot.name, new Tensor("float32", numbers, slot.neutral)];
    }),
  );
}

/** The first axis of a name sets its length. */
function fits(dims: readonly number[], axes: Axis[], sizes: Map<string, number>, scope = ""): boolean {
  if (dims.length !== axes.length) return false;
  return axes.every((axis, at) => {
    const size = dims[at]!;
    if (typeof axis === "number") return size === axis;
    const name = scope + axis;
    if (!sizes.has(name)) sizes.set(name, size);
    return size >= 1 && size === sizes.get(name);
  });
}

/** The base computes wrong results, without an error, at lengths that it was not captured for. */
function checkLengths(dims: readonly number[], { name, axes }: InputRecord, manifest: Manifest): void {
  axes.forEach((axis, at) => {
    const lengths = lengthsOf(manifest, axis);
    if (isAllowed(dims[at]!, lengths)) return;
    const [what, where] = ["an input has a length that the base does not take", `\`${name}\`, axis \`${axis}\``];
    throw new Fault({ what, where, found: `${dims[at]}`, expected: lengthsText(lengths), fix: "shorten it, or pad it" });
  });
}

/** 1 for tokens and 0 for padding; a row without tokens has no answer. */
function checkMask(tensor: Tensor, where: string): void {
  const numbers = Array.from(tensor.data as BigInt64Array | Int32Array | Uint8Array, Number);
  const width = tensor.dims.at(-1)!;
  const isEmpty = (row: number) => !numbers.slice(row * width, (row + 1) * width).includes(1);
  const empty = Array.from({ length: numbers.length / width }, (_, row) => row).find(isEmpty);
  if (empty === undefined && numbers.every((number) => number === 0 || number === 1)) return;
  const expected = "1 for each token, 0 for padding, and a token in each row";
  throw new Fault({ what: "a mask that leaves no token, or is none", where, expected });
}

/** ONNX Runtime reads a negative id from the end of the table, without an error. */
function checkIds(tensor: Tensor, record: InputRecord): void {
  const limit = record.limit;
  if (limit === null || limit === undefined) return;
  const wrong = Array.from(tensor.data as BigInt64Array | Int32Array, Number).find((id) => id < 0 || id >= limit);
  if (wrong === undefined) return;
  const fix = "use the tokenizer that belongs to the base";
  const [where, expected] = [`\`${record.name}\``, `0 to ${limit - 1}`];
  throw new Fault({ what: "an id is out of range", where, found: String(wrong), expected, fix });
}
