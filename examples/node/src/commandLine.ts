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
  /** One for all rows, or one for each. */
  strengths: number[];
}

export function usage(program: string): string {
  return `usage: ${program} verify BUNDLE [--json]
       ${program} run BUNDLE (TEXT… | --inputs ARRAYS.json) [--load NAME=FILE]… [--adapter NAME]…
       ${program} run BUNDLE (TEXT… | --inputs ARRAYS.json) --adapter NAME --strength NUMBER [--strength …]…
       ${program} run BUNDLE (TEXT… | --inputs ARRAYS.json) --adapter FUSION --weights MEMBER=NUMBER,… [--weights …]…
TEXT is --text TEXT, a pair --text FIRST --pair SECOND, or a question with its choices --text QUESTION --pair A --pair B …
One --adapter holds for all rows; one for each row makes a mixed batch, \`-\` standing for none. --weights
are those of the members of a weighted fusion, for all rows or for each. --strength is how many times what an adapter
adds is added, for all rows or for each. --load takes an \`.onnx_adapter\` file that was built for this bundle.`;
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
  const strengths = values.strength.map(numberOf);
  return { strengths, weights, name, bundle, json, texts, inputs, load: values.load.map(pair), adapters };
}

/** One choice holds for all rows. */
export function callOf({ adapters, weights, strengths }: Command): Call {
  const strength = strengths.length > 1 ? strengths : strengths[0];
  const given = { ...(weights.length ? { weights } : {}), ...(strength === undefined ? {} : { strength }) };
  return adapters.length > 1 ? { adapters, ...given } : { adapter: adapters[0] ?? null, ...given };
}

function parsed(words: string[]) {
  try {
    return parseArgs({
      args: signed(words),
      allowPositionals: true,
      tokens: true,
      options: {
        json: { type: "boolean", default: false },
        text: { type: "string", multiple: true, default: [] },
        pair: { type: "string", multiple: true, default: [] },
        inputs: { type: "string" },
        adapter: { type: "string", multiple: true, default: [] },
        strength: { type: "string", multiple: true, default: [] },
        weights: { type: "string", multiple: true, default: [] },
        load: { type: "string", multiple: true, default: [] },
      },
    });
  } catch (error) {
    throw new Usage(String(error));
  }
}

/** A number below 0 is the value of what stands before it; the parser would take it for an option. */
function signed(words: string[]): string[] {
  const isValue = (at: number) => words[at - 1] === "--strength" && /^-\.?\d/.test(words[at] ?? "");
  return words.flatMap((word, at) => (isValue(at) ? [] : isValue(at + 1) ? [`${word}=${words[at + 1]}`] : [word]));
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

function numberOf(text: string): number {
  const found = text.trim() ? Number(text) : NaN;
  if (Number.isNaN(found)) throw new Usage(`\`${text}\` is no number`);
  return found;
}

function weightsOf(text: string): Weights {
  const parts = text.split(",").map(pair);
  const found = Object.fromEntries(parts.map(([name, weight]) => [name, weight.trim() ? Number(weight) : NaN]));
  if (Object.keys(found).length < parts.length) throw new Usage(`\`${text}\` names an adapter twice`);
  return found;
}
