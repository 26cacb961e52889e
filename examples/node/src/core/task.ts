/** The contract between a row and the answer of an adapter (docs/reference/format.md, "Tasks"). */
import { Fault } from "./fault.js";

/** The activations of each problem type, the default first. */
const ACTIVATIONS = {
  single_label: ["softmax"],
  multi_label: ["sigmoid"],
  multiple_choice: ["softmax"],
  token: ["softmax"],
  span: ["softmax"],
  regression: ["identity", "sigmoid"],
  embedding: ["identity"],
  multi_vector: ["identity"],
  sparse_embedding: ["identity"],
  ranking: ["identity", "sigmoid"],
} as const;

export type ProblemType = keyof typeof ACTIVATIONS;
export type Activation = "softmax" | "sigmoid" | "identity";

/** The result of a head: numbers of a row, numbers of each token, a vector, or a vector of each token. */
export type Result = "logits" | "token_logits" | "embedding" | "token_embeddings";

export interface Task {
  type: ProblemType;
  /** The name of each class in the order of the logits; empty for types without names. */
  labels: string[];
  activation: Activation;
  /** Of multi_label: for each label the lowest probability at which it applies. */
  thresholds: number[];
  input: "text" | "pair" | "image" | "audio";
  /** The maximum number of tokens of a row, special tokens included; null if only the base limits it. */
  max_tokens: number | null;
  truncation: "right" | "left";
  /** The digest of the tokenizer that it was trained with; null if unknown. */
  tokenizer: string | null;
  pooling: string | null;
  normalised: boolean;
  prefix: string;
  /** What is put before queries and before documents, where they differ: then each text says which of the two it is. */
  query_prefix: string;
  document_prefix: string;
  /** The digest of the processor that it was trained with; null if unknown, or if it reads texts. */
  processor: string | null;
  /** The widths to which vectors may be truncated, beside the full one, the largest first. */
  widths: number[];
  /** The text that is made of a pair, with `{text}` and behind it `{pair}` in their places. */
  template: string;
  /** Of multi_vector: the ids of tokens that have no vector in documents. */
  skiplist: number[];
}

const THRESHOLD = 0.5;
const SHA256 = /^[0-9a-f]{64}$/;
const LABELLED: ProblemType[] = ["single_label", "multi_label", "token"];

/** Whether vectors of a type are compared with those of other texts. */
export function embeds(type: ProblemType): boolean {
  return type === "embedding" || type === "multi_vector" || type === "sparse_embedding";
}

export function resultOf(type: ProblemType): Result {
  if (type === "embedding" || type === "sparse_embedding") return "embedding";
  if (type === "multi_vector") return "token_embeddings";
  return type === "token" || type === "span" ? "token_logits" : "logits";
}

/** A task with the defaults of absent keys. Throws a Fault if the record breaks the format. */
export function parseTask(document: unknown, where: string): Task {
  const given = Object(document) as Partial<Task>;
  const type = given.type!;
  if (typeof given.type !== "string" || !Object.hasOwn(ACTIVATIONS, given.type)) {
    const expected = `one of ${Object.keys(ACTIVATIONS).join(", ")}`;
    throw new Fault({ what: "unknown problem type", where, found: String(given.type), expected });
  }
  const task: Task = {
    labels: [],
    activation: ACTIVATIONS[type][0],
    thresholds: [],
    input: "text",
    max_tokens: null,
    truncation: "right",
    tokenizer: null,
    pooling: null,
    normalised: false,
    prefix: "",
    query_prefix: "",
    document_prefix: "",
    processor: null,
    widths: [],
    template: "",
    skiplist: [],
    ...given,
    type,
  };
  task.activation ??= ACTIVATIONS[type][0];
  checkLabels(task, where);
  if (type === "multi_label" && !task.thresholds.length) task.thresholds = task.labels.map(() => THRESHOLD);
  checkValues(task, where);
  return task;
}

function checkLabels({ type, labels, thresholds }: Task, where: string): void {
  const areNames = Array.isArray(labels) && labels.every((label) => typeof label === "string" && label !== "");
  if (!areNames || new Set(labels).size < labels.length) {
    throw new Fault({ what: "the labels are not one name for each class", where, found: JSON.stringify(labels) });
  }
  if (labels.length > 0 !== LABELLED.includes(type)) {
    throw new Fault({ what: "labels and classes differ", where, found: `${labels.length} labels of \`${type}\`` });
  }
  const count = Array.isArray(thresholds) ? thresholds.length : NaN;
  if (count === 0 || (type === "multi_label" && count === labels.length)) return;
  throw new Fault({ what: "thresholds are not one for each label of a multi-label task", where, found: `${count} for ${labels.length} labels` });
}

/** Throws a Fault if a head does not give as many numbers as the task wants. */
export function checkWidth({ type, labels }: Task, width: number, where: string): void {
  const wanted = labels.length || (type === "span" ? 2 : type === "regression" ? width : 1);
  if (wanted === width) return;
  const what = labels.length ? "labels and classes differ" : `is no head for \`${type}\``;
  throw new Fault({ what, where, found: labels.length ? `${wanted} labels` : `${width} numbers`, expected: `${labels.length ? width : wanted}` });
}

function isNoPrefix(type: ProblemType, prefix: unknown): boolean {
  return prefix !== "" && (!embeds(type) || typeof prefix !== "string");
}

/** For each key, whether its value is invalid. */
const FAULTS: Record<Exclude<keyof Task, "type" | "labels">, (task: Task) => boolean> = {
  activation: ({ type, activation }) => !(ACTIVATIONS[type] as readonly Activation[]).includes(activation),
  thresholds: ({ thresholds }) => !thresholds.every((number) => number >= 0 && number <= 1),
  input: ({ input }) => !["text", "pair", "image", "audio"].includes(input),
  max_tokens: ({ max_tokens }) => max_tokens !== null && !(Number.isSafeInteger(max_tokens) && max_tokens >= 1),
  truncation: ({ truncation }) => truncation !== "right" && truncation !== "left",
  tokenizer: ({ tokenizer }) => tokenizer !== null && !SHA256.test(tokenizer),
  pooling: ({ type, pooling }) => pooling !== null && (!embeds(type) || typeof pooling !== "string" || !pooling),
  normalised: ({ type, normalised }) => normalised !== false && (!embeds(type) || normalised !== true),
  processor: ({ processor }) => processor !== null && !SHA256.test(processor),
  prefix: ({ type, prefix }) => isNoPrefix(type, prefix),
  query_prefix: ({ type, query_prefix, prefix }) => isNoPrefix(type, query_prefix) || (query_prefix !== "" && prefix !== ""),
  document_prefix: ({ type, document_prefix, prefix }) => isNoPrefix(type, document_prefix) || (document_prefix !== "" && prefix !== ""),
  template: ({ type, template }) =>
    template !== "" && (type !== "ranking" || typeof template !== "string" || !/^[^]*\{text\}[^]*\{pair\}[^]*$/.test(template)),
  skiplist: ({ type, skiplist }) =>
    !Array.isArray(skiplist) || (skiplist.length > 0 && type !== "multi_vector") || !skiplist.every((id) => Number.isSafeInteger(id) && id >= 0),
  widths: ({ type, widths }) =>
    !Array.isArray(widths) ||
    (widths.length > 0 && type !== "embedding") ||
    !widths.every((width, at) => Number.isSafeInteger(width) && width >= 1 && width < (widths[at - 1] ?? Infinity)),
};

function checkValues(task: Task, where: string): void {
  for (const [name, isWrong] of Object.entries(FAULTS)) {
    if (!isWrong(task)) continue;
    const found = `\`${name}\` ${JSON.stringify(task[name as keyof Task])}`;
    throw new Fault({ what: `holds what \`${task.type}\` cannot have`, where, found, expected: "what docs/reference/format.md says of tasks" });
  }
}
