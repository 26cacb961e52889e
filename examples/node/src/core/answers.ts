/** Outputs to answers, by the task of each row's adapter (docs/reference/format.md, "Answers"). */
import type { Tensor } from "onnxruntime-common";

import type { Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Head } from "./request.js";
import { taken } from "./rows.js";
import type { Outputs } from "./runners.js";
import type { ProblemType, Task } from "./task.js";

/** For each token of a row a 1 if it may be the answer to a question, and else a 0. */
export type Context = readonly number[];

/** The class of a row or of a token. */
export interface Prediction {
  label: string;
  probability: number;
  probabilities: Record<string, number>;
}

/** The span of tokens that answers a question: its first and its last token. */
export interface TokenSpan {
  first_token: number;
  last_token: number;
  probability: number;
}

/** The keys of an answer; the type of the task decides which of these it is. */
export type Keys =
  | Prediction
  | { labels: string[]; probabilities: Record<string, number> }
  /** Null for padding. */
  | { tokens: (Prediction | null)[] }
  | TokenSpan
  | { numbers: number[] }
  | { vector: number[] }
  /** Of each real token. */
  | { vectors: number[][] }
  /** The weights above 0, by the ids of their vocabulary entries. */
  | { weights: Record<string, number> }
  | { score: number }
  /** Without a task: the results by the name of their output. */
  | { outputs: Record<string, Nested> };

/** The adapter that answered, null for the base, and the type of its task, null if unknown. */
export interface By {
  adapter: Choice;
  task: ProblemType | null;
}

/** The answer to a row of arrays. */
export type Answer = By & Keys;

export type Nested = number | Nested[];

/** In a bank, the logits of classes that an adapter does not have are below. */
export const MASKED = -1e30;

/** The most tokens of the span that answers a question. */
const LONGEST_SPAN = 30;

/**
 * The answer to one row.
 *
 * @param outputs those of a call with this row alone, `[1, …]`; the head's without the classes of other adapters.
 * @param real which tokens of the row are no padding; null if all are real.
 * @param context of a span, which tokens of the row may be the answer.
 */
export function answerTo({ output, task }: Head, outputs: Outputs, real: boolean[] | null, context: Context | null): Keys {
  if (output === null || task === null) {
    return { outputs: Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, nested(tensor)])) };
  }
  const lines = linesOf(outputs[output]!);
  const isReal = (at: number) => outputs[output]!.dims.length < 3 || (real?.[at] ?? true);
  checkFinite(lines.filter((_, at) => isReal(at)));
  return keysOf(task, lines, isReal, context);
}

/** A row of the result of a head `[batch, …, classes]`, with the classes that its adapter has. */
export function ownClasses(tensor: Tensor, row: number): Tensor {
  const found = taken(tensor, [row]);
  const [lines, last] = [linesOf(found), found.dims.length - 1];
  const places = Array.from({ length: found.dims[last]! }, (_, at) => at);
  return taken(found, places.filter((place) => !lines.every((line) => line[place]! < MASKED)), last);
}

function keysOf(task: Task, lines: Float32Array[], isReal: (token: number) => boolean, context: Context | null): Keys {
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
      return { tokens: lines.map((line, at) => (isReal(at) ? prediction(line, task.labels) : null)) };
    case "span":
      return span(lines, tokensIn(context, lines.length).filter(isReal));
    case "embedding":
      return { vector: [...first] };
    case "multi_vector":
      return { vectors: lines.filter((_, at) => isReal(at) && (context?.[at] ?? 1) === 1).map((line) => [...line]) };
    case "sparse_embedding":
      return { weights: Object.fromEntries([...first.entries()].filter(([, weight]) => weight > 0)) };
    case "regression":
      return { numbers: activated(task, first) };
    case "multiple_choice":
      return { score: first[0]! };
    case "ranking":
      return { score: activated(task, first)[0]! };
  }
}

/** The best of the choices of a question, and the softmax over their scores. */
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

/** The places of the tokens that may be the answer. Throws a Fault if the context is not a 0 or 1 for each token. */
function tokensIn(context: Context | null, count: number): number[] {
  if (context?.length !== count || !context.every((may) => may === 0 || may === 1)) {
    const found = context ? `${context.length} values` : "none";
    throw new Fault({ what: "is not a 0 or 1 for each token", where: "`context`", found, expected: `${count} values` });
  }
  return context.flatMap((may, token) => (may ? [token] : []));
}

/** The span with the highest product of the softmax of its start and of its end, both over the tokens that may be the answer. */
function span(lines: Float32Array[], places: number[]): TokenSpan {
  if (!places.length) throw new Fault({ what: "no token may be the answer", expected: "a text beside the question" });
  const starts = softmax(places.map((place) => lines[place]![0]!));
  const ends = softmax(places.map((place) => lines[place]![1]!));
  const found = { first_token: places[0]!, last_token: places[0]!, probability: 0 };
  for (const [from, start] of places.entries()) {
    for (let to = from; to < places.length && places[to]! - start < LONGEST_SPAN; to++) {
      const probability = starts[from]! * ends[to]!;
      if (probability > found.probability) Object.assign(found, { first_token: start, last_token: places[to]!, probability });
    }
  }
  return found;
}

/** The numbers along the last axis of a row `[1, …]`. */
function linesOf({ type, data, dims }: Tensor): Float32Array[] {
  if (type !== "float32") throw new Fault({ what: "is no output that this client can show", found: type });
  const width = dims.at(-1)!;
  const count = dims.slice(1, -1).reduce((product, size) => product * size, 1);
  return Array.from({ length: count }, (_, line) => (data as Float32Array).subarray(line * width, (line + 1) * width));
}

function checkFinite(lines: Float32Array[]): void {
  if (lines.every((line) => line.every(Number.isFinite))) return;
  throw new Fault({ what: "an output is NaN or infinite", fix: "compare the bundle with its golden vectors" });
}

/** A row of an output as nested lists. */
function nested(tensor: Tensor): Nested {
  const lines = linesOf(tensor);
  checkFinite(lines);
  const lists: Nested[] = lines.map((line) => [...line]);
  return tensor.dims.slice(1, -1).reduceRight<Nested[]>((found, size) => {
    return Array.from({ length: found.length / size }, (_, at) => found.slice(at * size, (at + 1) * size));
  }, lists)[0]!;
}
