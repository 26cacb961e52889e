/** The command line: the same for the folder in Node and for the page in a browser. */
import { parseArgs } from "node:util";

import type { Choice } from "./core/bundle.js";
import type { Shares, Weights } from "./core/runners.js";
import type { Call } from "./core/service.js";

export class Usage extends Error {}

export interface Command {
  name: "verify" | "run";
  bundle: string;
  json: boolean;
  /** Rows, as texts or as a file of arrays; one of the two. */
  texts: string[];
  inputs: string | undefined;
  /** Adapters to load before, from their files. */
  load: [name: string, path: string][];
  adapters: Choice[];
  mixture: Shares[];
  weights: Weights[];
}

export function usage(program: string): string {
  return `usage: ${program} verify BUNDLE [--json]
       ${program} run BUNDLE (--text TEXT… | --inputs ARRAYS.json) [--load NAME=FILE]… [--adapter NAME]…
       ${program} run BUNDLE (--text TEXT… | --inputs ARRAYS.json) --mix NAME=SHARE,NAME=SHARE [--mix …]…
       ${program} run BUNDLE (--text TEXT… | --inputs ARRAYS.json) --adapter FUSION --weights MEMBER=NUMBER,… [--weights …]…
One --adapter holds for all rows; one for each row makes a mixed batch, \`-\` standing for none. --mix likewise: shares
are from 0 to 1, and the base has what is left. --weights are those of the members of a weighted fusion. --load takes an \`.onnx_adapter\` file that was built for this bundle.`;
}

/** Throws Usage if it is not clear what to do. */
export function parse(words: string[]): Command {
  const { values, positionals } = parsed(words);
  const [name, bundle] = positionals;
  if (!bundle || positionals.length !== 2 || (name !== "verify" && name !== "run")) throw new Usage("what to do is not clear");
  if (name === "run" && !values.text.length === !values.inputs) throw new Usage("either --text or --inputs");
  if (values.adapter.length && values.mix.length) throw new Usage("either --adapter or --mix");
  const { json, text: texts, inputs } = values;
  const adapters = values.adapter.map((adapter) => (adapter === "-" ? null : adapter));
  if (values.weights.length && values.adapter.length !== 1) throw new Usage("--weights go with one --adapter");
  const weights = values.weights.map(shares);
  return { weights, name, bundle, json, texts, inputs, load: values.load.map(pair), adapters, mixture: values.mix.map(shares) };
}

/** One choice holds for all rows. */
export function callOf({ adapters, mixture, weights }: Command, rows: number): Call {
  if (mixture.length) return { mixture: mixture.length === 1 ? Array<Shares>(rows).fill(mixture[0]!) : mixture };
  if (adapters.length > 1) return { adapters };
  return { adapter: adapters[0] ?? null, ...(weights.length ? { weights } : {}) };
}

function parsed(words: string[]) {
  try {
    return parseArgs({
      args: words,
      allowPositionals: true,
      options: {
        json: { type: "boolean", default: false },
        text: { type: "string", multiple: true, default: [] },
        inputs: { type: "string" },
        adapter: { type: "string", multiple: true, default: [] },
        mix: { type: "string", multiple: true, default: [] },
        weights: { type: "string", multiple: true, default: [] },
        load: { type: "string", multiple: true, default: [] },
      },
    });
  } catch (error) {
    throw new Usage(String(error));
  }
}

/** NAME=VALUE */
function pair(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at < 1) throw new Usage(`\`${text}\` is not of the form NAME=VALUE`);
  return [text.slice(0, at), text.slice(at + 1)];
}

function shares(text: string): Shares {
  const parts = text.split(",").map(pair);
  const found = Object.fromEntries(parts.map(([name, share]) => [name, share.trim() ? Number(share) : NaN]));
  if (Object.keys(found).length < parts.length) throw new Usage(`\`${text}\` names an adapter twice`);
  return found;
}
