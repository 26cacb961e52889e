/** Texts to answers by the adapters of this folder, an adapter for each row, with transformers.js in Node and browsers. */
import { AutoModel, AutoTokenizer, Tensor, env, softmax } from "@huggingface/transformers";

import adapters from "./adapters.json" with { type: "json" };

env.allowLocalModels = true;
env.allowRemoteModels = false;
env.useBrowserCache = false; // it is keyed by address, and would keep the model when the files of this folder change

const FOLDER = import.meta.dirname ?? new URL(".", import.meta.url).pathname;
const INPUTS = ["input_ids", "attention_mask", "token_type_ids"];
const TASKS = ["single_label", "multi_label", "embedding", "regression"];

/** In the bank, logits of classes that an adapter does not have are below. */
const MASKED = -1e30;

/** Half of a surrogate pair, NUL, and blanks of either Unicode or JavaScript: these give other ids in JavaScript. */
const OTHERWISE = /[\0\u0085\ufeff\p{Cs}]/u;

/**
 * Open the model on a device of transformers.js: "wasm" (the default) or "webgpu" in browsers, "cpu" in Node.
 *
 * Returns a function that answers rows `{ text, adapter }`, an adapter for each, in one call. Answers are those of the other
 * clients of adapter-export: `label`, `labels` and `probabilities`, `vector`, or `numbers`; `cut` is the number of tokens that were
 * left out.
 */
export async function open(device) {
  const tokenizer = await AutoTokenizer.from_pretrained(FOLDER);
  const model = await AutoModel.from_pretrained(FOLDER, { device });
  const { adapter_ids, mixes_rows, padded_to } = model.config.adapter_export;

  async function call(rows) {
    const encoded = rows.map(({ text, adapter }) => encode(tokenizer, text, adapter));
    const width = padded_to ?? Math.max(...encoded.map(({ input_ids }) => input_ids.length));
    const batch = (name) => integers(encoded.flatMap((row) => padded(row[name], width)), [rows.length, width]);
    const ids = integers(rows.map(({ adapter }) => adapters[adapter].row), [rows.length]);
    const outputs = await model({ ...Object.fromEntries(INPUTS.map((name) => [name, batch(name)])), [adapter_ids]: ids });
    return rows.map(({ adapter }, at) => {
      const { task, output } = adapters[adapter];
      const { cut } = encoded[at];
      return { adapter, task, ...read(adapters[adapter], [...outputs[output][at].data]), ...(cut ? { cut } : {}) };
    });
  }

  return async function answer(rows) {
    if (!rows.length) return [];
    const calls = mixes_rows ? [rows] : rows.map((row) => [row]); // else rows would change each other's answers
    const found = [];
    for (const some of calls) found.push(...(await call(some)));
    return found;
  };
}

function encode(tokenizer, text, adapter) {
  if (!Object.hasOwn(adapters, adapter)) throw new Error(`no adapter \`${adapter}\`: expected one of ${Object.keys(adapters).join(", ")}`);
  const { task, input, prefix, max_tokens, truncation } = adapters[adapter];
  if (!TASKS.includes(task) || input !== "text") throw new Error(`adapter \`${adapter}\` answers no single texts (task ${task}, input ${input})`);
  if (typeof text !== "string" || OTHERWISE.test(text)) throw new Error("the text has a character that tokenizers in JavaScript read otherwise");
  const ids = (special) => tokenizer(prefix + text, { add_special_tokens: special, return_token_type_ids: true, return_tensor: false });
  const [whole, own] = [ids(true), ids(false).input_ids];
  const count = whole.input_ids.length;
  const cut = Math.max(count - (max_tokens ?? count), 0);
  if (count < 1 || (cut && cut >= own.length)) throw new Error(`${count} tokens: no token of the text is left`);
  // transformers.js itself would cut the special tokens at the end
  const first = whole.input_ids.findIndex((_, at) => own.every((id, place) => whole.input_ids[at + place] === id));
  const from = truncation === "left" ? first : first + own.length - cut;
  if (cut && first < 0) throw new Error(`${count} tokens, expected at most ${max_tokens}: this tokenizer's texts cannot be cut`);
  const kept = (numbers = Array(count).fill(0)) => numbers.toSpliced(from, cut);
  return { input_ids: kept(whole.input_ids), attention_mask: kept(whole.attention_mask), token_type_ids: kept(whole.token_type_ids), cut };
}

function padded(numbers, width) {
  return [...numbers, ...Array(width - numbers.length).fill(0)];
}

function integers(numbers, dims) {
  return new Tensor("int64", numbers.map(BigInt), dims);
}

function read({ task, labels, activation, thresholds }, result) {
  const numbers = result.filter((number) => !(number < MASKED));
  if (!numbers.every(Number.isFinite) || (labels.length && labels.length !== numbers.length)) throw new Error("the model gave no numbers for this adapter");
  const found = activation === "softmax" ? softmax(numbers) : activation === "sigmoid" ? numbers.map(sigmoid) : numbers;
  const probabilities = Object.fromEntries(labels.map((label, at) => [label, found[at]]));
  if (task === "multi_label") return { labels: labels.filter((_, at) => found[at] >= thresholds[at]), probabilities };
  if (task !== "single_label") return { [task === "embedding" ? "vector" : "numbers"]: found };
  const probability = Math.max(...found);
  return { label: labels[found.indexOf(probability)], probability, probabilities };
}

function sigmoid(number) {
  return 1 / (1 + Math.exp(-number));
}
