/**
 * node dist/main.js verify BUNDLE [--json]
 * node dist/main.js run BUNDLE --text TEXT [--text TEXT]… [--adapter NAME]…
 * node dist/main.js run BUNDLE --inputs ARRAYS.json [--adapter NAME]…
 *
 * Exit code 0: all is well. 1: something is wrong, and stderr says what. 2: the command line is wrong.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { answers } from "./core/answers.js";
import { parseInputs } from "./core/arrays.js";
import { Bundle, type Choice } from "./core/bundle.js";
import { Fault } from "./core/fault.js";
import type { Inputs } from "./core/request.js";
import { Bank, FedAdapters } from "./core/runners.js";
import { selfCheck } from "./core/selfCheck.js";
import { TextInputs } from "./core/text.js";
import { Folder } from "./folder.js";

const USAGE = `usage: main.js verify BUNDLE [--json]
       main.js run BUNDLE --text TEXT [--text TEXT]… [--adapter NAME]…
       main.js run BUNDLE --inputs ARRAYS.json [--adapter NAME]…
One --adapter holds for all rows; one for each row makes a mixed batch, \`base\` standing for none.`;

class Usage extends Error {}

async function verify(bundle: Bundle, asJson: boolean): Promise<void> {
  const findings = await selfCheck(bundle);
  if (asJson) console.log(JSON.stringify(findings, null, 2));
  else {
    const rows = findings.map(({ flavour, adapter, mixed, worst }) => {
      return { flavour, adapter: mixed ? "mixed batch" : (adapter ?? "base"), "% of the allowed": +(100 * worst).toFixed(1) };
    });
    console.table(rows);
  }
  if (!findings.length) {
    const fix = "build it with `--flavours inputs,bank`";
    throw new Fault({ what: "holds no graph that Node can run as it should", fix });
  }
  if (!findings.every(({ worst }) => worst <= 1)) {
    throw new Fault({ what: "this machine does not compute what the reference computed" });
  }
}

async function run(bundle: Bundle, inputs: Inputs, names: string[]): Promise<void> {
  const choices: Choice[] = names.map((name) => (name === "base" ? null : name));
  choices.forEach((choice) => choice !== null && bundle.adapter(choice));
  const isMixed = choices.length > 1;
  const result = isMixed
    ? await (await Bank.open(bundle)).run(inputs, choices)
    : await (await FedAdapters.open(bundle)).run(inputs, choices[0] ?? null);
  const found = answers(result, inputs).map((answer, row) => ({ adapter: choices[isMixed ? row : 0] ?? null, ...answer }));
  console.log(JSON.stringify(found, null, 2));
}

async function arraysOf(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, "utf-8"));
  } catch (error) {
    throw new Fault({ what: "cannot be read as JSON", where: path, found: String(error) });
  }
}

function commandLine() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        json: { type: "boolean", default: false },
        text: { type: "string", multiple: true, default: [] },
        inputs: { type: "string" },
        adapter: { type: "string", multiple: true, default: [] },
      },
    });
  } catch (error) {
    throw new Usage(String(error));
  }
}

async function main(): Promise<void> {
  const { values, positionals } = commandLine();
  const [command, folder] = positionals;
  if (!folder || positionals.length !== 2 || !["verify", "run"].includes(command!)) throw new Usage("what to do is not clear");
  if (command === "run" && !values.text.length === !values.inputs) throw new Usage("either --text or --inputs");
  const bundle = await Bundle.open(new Folder(folder));
  if (command === "verify") {
    await bundle.verify();
    return verify(bundle, values.json);
  }
  const inputs = values.inputs
    ? parseInputs(await arraysOf(values.inputs), bundle.manifest)
    : (await TextInputs.open(bundle)).batch(values.text);
  return run(bundle, inputs, values.adapter);
}

try {
  await main();
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : String(error)}`);
  if (error instanceof Usage) console.error(USAGE);
  process.exitCode = error instanceof Usage ? 2 : 1;
}
