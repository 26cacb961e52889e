/** Outputs to what a caller wants to see: one answer for each row, by the task of its adapter (docs/format.md, "Answers"). */
import type { Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";
import type { Result } from "./runners.js";
import type { Task } from "./task.js";

/** The class of a text or of a token. */
export interface Prediction {
  label: string;
  probability: number;
  probabilities: Record<string, number>;
}

/** What is said of a row; the type of its task decides which of these it is. */
export type Answer =
  | Prediction
  | { labels: string[]; probabilities: Record<string, number> }
  /** Null for padding. */
  | { tokens: (Prediction | null)[] }
  /** The first and the last token. */
  | { start: number; end: number; probability: number }
  | { numbers: number[] }
  | { vector: number[] }
  | { score: number }
  /** Nobody knows a task: results as they are, by the name of their output. */
  | { outputs: Record<string, Nested> };

export type Nested = number[] | Nested[];

/** In a bank, the logits of classes that an adapter does not have are below. */
export const MASKED = -1e30;

/** The most tokens of the span that answers a question. */
const LONGEST_SPAN = 30;

/** @param contexts for each row which of its tokens may be the answer to a question; all of them where it is left out. */
export function answers({ outputs, heads }: Result, inputs: Inputs, contexts: (boolean[] | null)[] = []): Answer[] {
  return heads.map(({ output, task }, row) => {
    if (output === null || task === null) {
      return { outputs: Object.fromEntries(Object.entries(outputs).map(([name, each]) => [name, nested(each, row)])) };
    }
    const lines = linesOf(outputs[output]!, row);
    const real = outputs[output]!.dims.length === 3 ? realTokens(inputs, row, lines.length) : [true];
    checkFinite(lines.filter((_, at) => real[at]));
    return answer(task, lines, real, contexts[row] ?? null);
  });
}

function answer(task: Task, lines: Float32Array[], real: boolean[], context: boolean[] | null): Answer {
  const [first] = lines as [Float32Array];
  switch (task.type) {
    case "single_label":
      return prediction(first, task.labels);
    case "multi_label": {
      const shares = activated(task, first);
      const chosen = task.labels.filter((_, at) => shares[at]! >= task.thresholds[at]!);
      return { labels: chosen, probabilities: named(task.labels, shares) };
    }
    case "token":
      return { tokens: lines.map((line, at) => (real[at] ? prediction(line, task.labels) : null)) };
    case "span":
      return span(lines, real.map((isReal, at) => isReal && (context?.[at] ?? true)));
    case "embedding":
      return { vector: [...first] };
    case "regression":
      return { numbers: activated(task, first) };
    case "multiple_choice":
      return { score: first[0]! };
    case "ranking":
      return { score: activated(task, first)[0]! };
  }
}

/** Which of the choices of a question is the best, and the softmax over their scores. */
export function choose(scores: number[]): { choice: number; probabilities: number[] } {
  const probabilities = softmax(scores);
  return { choice: best(probabilities), probabilities };
}

function activated({ activation }: Task, result: Float32Array): number[] {
  if (activation === "softmax") return softmax(result);
  return activation === "sigmoid" ? Array.from(result, sigmoid) : [...result];
}

function softmax(logits: ArrayLike<number>): number[] {
  const highest = Math.max(...Array.from(logits));
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** 1 / (1 + exp(−x)), without overflow. */
function sigmoid(logit: number): number {
  const power = Math.exp(-Math.abs(logit));
  return logit >= 0 ? 1 / (1 + power) : power / (1 + power);
}

function prediction(logits: Float32Array, labels: string[]): Prediction {
  const shares = softmax(logits);
  const at = best(shares);
  return { label: labels[at]!, probability: shares[at]!, probabilities: named(labels, shares) };
}

function named(labels: string[], shares: number[]): Record<string, number> {
  if (labels.length !== shares.length) {
    throw new Fault({ what: "labels and classes differ", found: `${labels.length} labels`, expected: `${shares.length}` });
  }
  return Object.fromEntries(labels.map((label, at) => [label, shares[at]!]));
}

/** The first of the largest. */
function best(numbers: number[]): number {
  return numbers.reduce((found, number, at) => (number > numbers[found]! ? at : found), 0);
}

/** The span of the highest product of the softmax of its start and of its end over the tokens that may be the answer. */
function span(lines: Float32Array[], context: boolean[]): { start: number; end: number; probability: number } {
  const places = context.flatMap((may, at) => (may ? [at] : []));
  if (!places.length) throw new Fault({ what: "no token may be the answer", expected: "a text beside the question" });
  const starts = softmax(places.map((place) => lines[place]![0]!));
  const ends = softmax(places.map((place) => lines[place]![1]!));
  const found = { start: places[0]!, end: places[0]!, probability: 0 };
  for (const [from, start] of places.entries()) {
    for (let to = from; to < places.length && places[to]! - start < LONGEST_SPAN; to++) {
      const probability = starts[from]! * ends[to]!;
      if (probability > found.probability) Object.assign(found, { start, end: places[to]!, probability });
    }
  }
  return found;
}

/** A row of an output, cut to what its adapter has along the last axis. */
function linesOf(tensor: Tensor, row: number): Float32Array[] {
  if (tensor.type !== "float32") throw new Fault({ what: "is no output that this client can show", found: tensor.type });
  const width = tensor.dims.at(-1)!;
  const count = tensor.dims.slice(1, -1).reduce((product, size) => product * size, 1);
  return Array.from({ length: count }, (_, line) => {
    const start = (row * count + line) * width;
    return (tensor.data as Float32Array).subarray(start, start + width).filter((number) => !(number < MASKED));
  });
}

function checkFinite(lines: Float32Array[]): void {
  if (lines.every((line) => line.every(Number.isFinite))) return;
  throw new Fault({ what: "an output is NaN or infinite", fix: "hold the bundle against its golden vectors" });
}

/** A row of an output as lists in lists. */
function nested(tensor: Tensor, row: number): Nested {
  const [sizes, rows] = [tensor.dims.slice(1, -1), linesOf(tensor, row)];
  checkFinite(rows);
  const lists: Nested[] = rows.map((line) => [...line]);
  return sizes.reduceRight<Nested[]>((found, size) => {
    return Array.from({ length: found.length / size }, (_, at) => found.slice(at * size, (at + 1) * size));
  }, lists)[0]!;
}

/** Which tokens are no padding, by the mask of the base. */
function realTokens(inputs: Inputs, row: number, count: number): boolean[] {
  const mask = inputs["attention_mask"];
  return Array.from({ length: count }, (_, at) => !mask || Number(mask.data[row * count + at]) !== 0);
}
