/** Outputs to what a caller wants to see: one answer for each row, of the outputs that mean something for its adapter. */
import type { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";
import type { Result } from "./runners.js";

export interface Scored {
  label: string;
  probability: number;
}

/** What the row's adapter is for decides which of these there is. */
export interface Answer {
  /** The classes of a text, the likeliest first. */
  classes?: Scored[];
  /** The likeliest class of each token; null for padding. */
  tokens?: (Scored | null)[];
  /** What a regression or an embedding gives, or logits whose classes have no names. */
  numbers?: number[];
  /** Without a head: the base's outputs. */
  outputs?: Record<string, Nested>;
}

export type Nested = number[] | Nested[];

/** In a bank, the logits of classes that an adapter does not have are below. */
export const MASKED = -1e30;

export function answers({ outputs, heads }: Result, inputs: Inputs): Answer[] {
  return heads.map(({ output, labels }, row) => {
    if (output === null) {
      return { outputs: Object.fromEntries(Object.entries(outputs).map(([name, each]) => [name, nested(each, row)])) };
    }
    const tensor = outputs[output]!;
    const lines = linesOf(tensor, row);
    if (tensor.dims.length === 3) return { tokens: tokens(lines, labels ?? [], realTokens(inputs, row, lines.length)) };
    return labels ? { classes: softmax(lines[0]!, labels) } : { numbers: [...lines[0]!] };
  });
}

/** A row of an output, cut to what its adapter has along the last axis; throws a Fault for what is no number. */
function linesOf(tensor: Tensor, row: number): Float32Array[] {
  if (tensor.type !== "float32") throw new Fault({ what: "is no output that this client can show", found: tensor.type });
  const width = tensor.dims.at(-1)!;
  const count = tensor.dims.slice(1, -1).reduce((product, size) => product * size, 1);
  const lines = Array.from({ length: count }, (_, line) => {
    const start = (row * count + line) * width;
    return (tensor.data as Float32Array).subarray(start, start + width).filter((number) => !(number < MASKED));
  });
  if (!lines.every((line) => line.every(Number.isFinite))) {
    throw new Fault({ what: "an output is NaN or infinite", fix: "hold the bundle against its golden vectors" });
  }
  return lines;
}

/** A row of an output as lists in lists. */
function nested(tensor: Tensor, row: number): Nested {
  const sizes = tensor.dims.slice(1, -1);
  const lists: Nested[] = linesOf(tensor, row).map((line) => [...line]);
  return sizes.reduceRight<Nested[]>((found, size) => {
    return Array.from({ length: found.length / size }, (_, at) => found.slice(at * size, (at + 1) * size));
  }, lists)[0]!;
}

function tokens(lines: Float32Array[], labels: string[], isReal: boolean[]): (Scored | null)[] {
  return lines.map((line, at) => (isReal[at] ? softmax(line, labels)[0]! : null));
}

/** Which tokens are no padding, by the mask of the base. */
function realTokens(inputs: Inputs, row: number, count: number): boolean[] {
  const mask = inputs["attention_mask"];
  return Array.from({ length: count }, (_, at) => !mask || Number(mask.data[row * count + at]) !== 0);
}

/** Classes with their probabilities, the likeliest first. */
function softmax(logits: Float32Array, labels: string[]): Scored[] {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  const scored = powers.map((power, at) => ({ label: labels[at] ?? `class ${at}`, probability: power / total }));
  return scored.sort((one, other) => other.probability - one.probability);
}
