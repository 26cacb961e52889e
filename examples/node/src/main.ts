/**
 * node dist/main.js verify BUNDLE [--json]
 * node dist/main.js run BUNDLE --text TEXT [--text TEXT]… [--adapter NAME]…
 *
 * Exit code 0: all is well. 1: something is wrong, and stderr says what. 2: the command line is wrong.
 */
import { parseArgs } from "node:util";

import type { Tensor } from "onnxruntime-common";

import { Bundle, type Choice } from "./core/bundle.js";
import { Fault } from "./core/fault.js";
import { Bank, FedAdapters } from "./core/runners.js";
import { selfCheck } from "./core/selfCheck.js";
import { TextInputs, softmax } from "./core/text.js";
import { Folder } from "./folder.js";

const USAGE = `usage: main.js verify BUNDLE [--json]
       main.js run BUNDLE --text TEXT [--text TEXT]… [--adapter NAME]…
One --adapter holds for all texts; one for each text makes a mixed batch, \`base\` standing for none.`;

async function verify(bundle: Bundle, asJson: boolean): Promise<number> {
  const findings = await selfCheck(bundle);
  if (asJson) console.log(JSON.stringify(findings, null, 2));
  else {
    console.table(
      findings.map(({ flavour, adapter, mixed, worst }) => {
        return { flavour, adapter: mixed ? "mixed batch" : (adapter ?? "base"), "% of the allowed": +(100 * worst).toFixed(1) };
      }),
    );
  }
  if (findings.length && findings.every(({ worst }) => worst <= 1)) return 0;
  throw new Fault({ what: "this machine does not compute what the reference computed, or there was nothing to run" });
}

async function run(bundle: Bundle, texts: string[], names: string[]): Promise<number> {
  const inputs = (await TextInputs.open(bundle)).batch(texts);
  const choices: Choice[] = names.map((name) => (name === "base" ? null : name));
  const each = choices.length > 1 ? choices : texts.map(() => choices[0] ?? null);
  each.forEach((choice) => choice !== null && bundle.adapter(choice));
  const outputs =
    choices.length > 1
      ? await (await Bank.open(bundle)).run(inputs, choices)
      : await (await FedAdapters.open(bundle)).run(inputs, each[0]!);
  const results = texts.map((text, row) => ({ text, adapter: each[row]!, classes: classes(bundle, outputs, each[row]!, row) }));
  console.log(JSON.stringify(results, null, 2));
  return 0;
}

function classes(bundle: Bundle, outputs: Record<string, unknown>, choice: Choice, row: number) {
  const { labels, output } = choice === null ? { labels: null, output: null } : bundle.adapter(choice);
  const logits = output === null ? undefined : (outputs[output] as Tensor | undefined);
  if (!labels || !logits || logits.dims.length !== 2) return null;
  const width = logits.dims[1]!;
  return softmax((logits.data as Float32Array).subarray(row * width, (row + 1) * width), labels);
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      json: { type: "boolean", default: false },
      text: { type: "string", multiple: true, default: [] },
      adapter: { type: "string", multiple: true, default: [] },
    },
  });
  const [command, folder] = positionals;
  if (!folder || positionals.length !== 2 || !["verify", "run"].includes(command!)) throw new TypeError("what to do is not clear");
  if (command === "run" && !values.text.length) throw new TypeError("no --text");
  const bundle = await Bundle.open(new Folder(folder));
  await bundle.verify();
  return command === "verify" ? verify(bundle, values.json) : run(bundle, values.text, values.adapter);
}

try {
  process.exitCode = await main();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  const isUsage = error instanceof TypeError && !(error instanceof Fault);
  console.error(`error: ${message}${isUsage ? `\n${USAGE}` : ""}`);
  process.exitCode = isUsage ? 2 : 1;
}
