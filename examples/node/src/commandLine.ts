/** The command line, the same for a folder in Node and for the page in a browser. */
import { parseArgs } from "node:util";

import type { Weights } from "./core/adapters.js";
import type { Context } from "./core/answers.js";
import type { Options } from "./core/options.js";
import type { Asked } from "./core/text.js";

export class Usage extends Error {}

export interface Command extends Required<Options> {
  name: "verify" | "run";
  bundle: string;
  json: boolean;
  /** Rows as texts, or in a file of arrays; one of the two. */
  texts: Asked[];
  inputs: string | undefined;
  /** Adapters to load before, from their files. */
  load: [name: string, path: string][];
}

export function usage(program: string): string {
  return `usage: ${program} verify BUNDLE [--json]
       ${program} run BUNDLE (TEXT… | --inputs ARRAYS.json) [--load NAME=FILE]… [--adapter NAME]…
                  [--strength NUMBER]… [--weights MEMBER=NUMBER,…]… [--context 0,0,1,…]…
TEXT is --text TEXT, a pair --text FIRST --pair SECOND, or a question with its choices --text QUESTION --pair A --pair B …
Give --adapter, --strength, --weights and --context once for all rows, or once for each row.
  --adapter   the adapter; \`base\` or \`-\` for the base. Required where adapters have tasks
  --strength  the factor of the adapter's updates; heads are not scaled
  --weights   the weights of the members of a weighted fusion
  --context   for arrays of a \`span\`: a 1 for each token of the row that may be the answer
  --load      load an \`.onnx_adapter\` file that was built for this bundle`;
}

/** Parse a command line. Throws Usage if it is not one. */
export function parse(words: string[]): Command {
  const { values, positionals, tokens } = parsed(words);
  const [name, bundle] = positionals;
  if (!bundle || positionals.length !== 2 || (name !== "verify" && name !== "run")) throw new Usage("what to do is not clear");
  if (name === "run" && !values.text.length === !values.inputs) throw new Usage("either --text or --inputs");
  const { json, inputs } = values;
  const options = tokens.flatMap((token) => (token.kind === "option" && token.value !== undefined ? [[token.name, token.value] as const] : []));
  const texts = asked(options);
  const adapters = values.adapter.map((adapter) => (adapter === "-" ? null : adapter));
  const [weights, strengths, contexts] = [values.weights.map(weightsOf), values.strength.map(numberOf), values.context.map(contextOf)];
  return { name, bundle, json, texts, inputs, load: values.load.map(pair), adapters, weights, strengths, contexts };
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
        context: { type: "string", multiple: true, default: [] },
        load: { type: "string", multiple: true, default: [] },
      },
    });
  } catch (error) {
    throw new Usage(String(error));
  }
}

/** Join a negative number with the option before it: the parser would take it for another option. */
function signed(words: string[]): string[] {
  const isValue = (at: number) => words[at - 1] === "--strength" && /^-\.?\d/.test(words[at] ?? "");
  return words.flatMap((word, at) => (isValue(at) ? [] : isValue(at + 1) ? [`${word}=${words[at + 1]}`] : [word]));
}

/** --pair belongs to the --text before it; several of them are choices. */
function asked(options: (readonly [name: string, value: string])[]): Asked[] {
  const found: Asked[] = [];
  for (const [name, value] of options) {
    const last = found.at(-1);
    if (name === "text") found.push({ text: value });
    else if (name === "pair" && last === undefined) throw new Usage("--pair belongs to the --text before it");
    else if (name === "pair" && last) {
      const { text, pair, choices = pair === undefined ? [] : [pair] } = last;
      found[found.length - 1] = choices.length ? { text, choices: [...choices, value] } : { text, pair: value };
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

/** 0,0,1,… */
function contextOf(text: string): Context {
  if (!/^[01](,[01])*$/.test(text)) throw new Usage(`\`${text}\` is not a list of 0 and 1`);
  return text.split(",").map(Number);
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
