/** The command line: the same for the folder in Node and for the page in a browser. */
import { parseArgs } from "node:util";

import type { Choice } from "./core/bundle.js";
import type { Weights } from "./core/runners.js";
import type { Call } from "./core/service.js";
import type { Asked } from "./core/text.js";

export class Usage extends Error {}

export interface Command {
  name: "verify" | "run";
  bundle: string;
  json: boolean;
  /** Rows, as texts or as a file of arrays; one of the two. */
  texts: Asked[];
  inputs: string | undefined;
  /** Adapters to load before, from their files. */
  load: [name: string, path: string][];
  adapters: Choice[];
  weights: Weights[];
}

export function usage(program: string): string {
  return `usage: ${program} verify BUNDLE [--json]
       ${program} run BUNDLE (TEXT… | --inputs ARRAYS.json) [--load NAME=FILE]… [--adapter NAME]…
       ${program} run BUNDLE (TEXT… | --inputs ARRAYS.json) --adapter FUSION --weights MEMBER=NUMBER,… [--weights …]…
TEXT is --text TEXT, a pair --text FIRST --pair SECOND, or a question with its choices --text QUESTION --pair A --pair B …
One --adapter holds for all rows; one for each row makes a mixed batch, \`-\` standing for none. --weights
are those of the members of a weighted fusion, for all rows or for each. --load takes an \`.onnx_adapter\` file that was built for this bundle.`;
}

/** Throws Usage if it is not clear what to do. */
export function parse(words: string[]): Command {
  const { values, positionals, tokens } = parsed(words);
  const [name, bundle] = positionals;
  if (!bundle || positionals.length !== 2 || (name !== "verify" && name !== "run")) throw new Usage("what to do is not clear");
  if (name === "run" && !values.text.length === !values.inputs) throw new Usage("either --text or --inputs");
  const { json, inputs } = values;
  const options = tokens.flatMap((token) => (token.kind === "option" && token.value !== undefined ? [[token.name, token.value] as const] : []));
  const texts = asked(options);
  const adapters = values.adapter.map((adapter) => (adapter === "-" ? null : adapter));
  if (values.weights.length && values.adapter.length !== 1) throw new Usage("--weights go with one --adapter");
  const weights = values.weights.map(weightsOf);
  return { weights, name, bundle, json, texts, inputs, load: values.load.map(pair), adapters };
}

/** One choice holds for all rows. */
export function callOf({ adapters, weights }: Command): Call {
  if (adapters.length > 1) return { adapters };
  return { adapter: adapters[0] ?? null, ...(weights.length ? { weights } : {}) };
}

function parsed(words: string[]) {
  try {
    return parseArgs({
      args: words,
      allowPositionals: true,
      tokens: true,
      options: {
        json: { type: "boolean", default: false },
        text: { type: "string", multiple: true, default: [] },
        pair: { type: "string", multiple: true, default: [] },
        inputs: { type: "string" },
        adapter: { type: "string", multiple: true, default: [] },
        weights: { type: "string", multiple: true, default: [] },
        load: { type: "string", multiple: true, default: [] },
      },
    });
  } catch (error) {
    throw new Usage(String(error));
  }
}

/** A second text belongs to the text before it; several are choices. */
function asked(options: (readonly [name: string, value: string])[]): Asked[] {
  const found: Asked[] = [];
  for (const [name, value] of options) {
    const last = found.at(-1);
    if (name === "text") found.push(value);
    else if (name === "pair" && typeof last === "string") found[found.length - 1] = { text: last, pair: value };
    else if (name === "pair" && last === undefined) throw new Usage("--pair belongs to the --text before it");
    else if (name === "pair" && typeof last === "object") {
      const choices = "choices" in last ? last.choices : [last.pair];
      found[found.length - 1] = { text: last.text, choices: [...choices, value] };
    }
  }
  return found;
}

/** NAME=VALUE */
function pair(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at < 1) throw new Usage(`\`${text}\` is not of the form NAME=VALUE`);
  return [text.slice(0, at), text.slice(at + 1)];
}

function weightsOf(text: string): Weights {
  const parts = text.split(",").map(pair);
  const found = Object.fromEntries(parts.map(([name, weight]) => [name, weight.trim() ? Number(weight) : NaN]));
  if (Object.keys(found).length < parts.length) throw new Usage(`\`${text}\` names an adapter twice`);
  return found;
}
