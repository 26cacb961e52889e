/**
 * node dist/main.js verify BUNDLE [--json]
 * node dist/main.js run BUNDLE --text TEXT [--text TEXT]… [--load NAME=FILE]… [--adapter NAME]…
 * node dist/main.js run BUNDLE --inputs ARRAYS.json [--load NAME=FILE]… [--adapter NAME]…
 * node dist/main.js run BUNDLE … --mix NAME=SHARE,NAME=SHARE [--mix …]…
 *
 * Exit code 0: all is well. 1: something is wrong, and stderr says what. 2: the command line is wrong.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { parseInputs } from "./core/arrays.js";
import { Bundle, type Choice } from "./core/bundle.js";
import { Fault } from "./core/fault.js";
import type { Inputs } from "./core/request.js";
import type { Shares } from "./core/runners.js";
import { selfCheck } from "./core/selfCheck.js";
import { type Call, Service } from "./core/service.js";
import { TextInputs } from "./core/text.js";
import { Folder } from "./folder.js";

const USAGE = `usage: main.js verify BUNDLE [--json]
       main.js run BUNDLE (--text TEXT… | --inputs ARRAYS.json) [--load NAME=FILE]… [--adapter NAME]…
       main.js run BUNDLE (--text TEXT… | --inputs ARRAYS.json) --mix NAME=SHARE,NAME=SHARE [--mix …]…
One --adapter holds for all rows; one for each row makes a mixed batch, \`-\` standing for none. --mix likewise: shares
are from 0 to 1, and the base has what is left. --load takes an \`.onnx_adapter\` file that was built for this bundle.`;

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

async function run(bundle: Bundle, inputs: Inputs, call: Call, files: [name: string, path: string][]): Promise<void> {
  const service = new Service(bundle);
  for (const [name, path] of files) await service.load(name, await bytesOf(path));
  const { adapter = null, adapters, mixture } = call;
  const found = (await service.run(inputs, call)).map((answer, row) => {
    return { ...(mixture ? { mixture: mixture[row] } : { adapter: adapters ? adapters[row] : adapter }), ...answer };
  });
  console.log(JSON.stringify(found, null, 2));
}

/** One choice holds for all rows. */
function callOf(adapters: Choice[], mixtures: string[], rows: number): Call {
  if (mixtures.length) {
    const shares = mixtures.map(sharesOf);
    return { mixture: shares.length === 1 ? Array(rows).fill(shares[0]) : shares };
  }
  return adapters.length > 1 ? { adapters } : { adapter: adapters[0] ?? null };
}

function sharesOf(text: string): Shares {
  const parts = text.split(",").map(pair);
  const shares = Object.fromEntries(parts.map(([name, share]) => [name, share.trim() ? Number(share) : NaN]));
  if (Object.keys(shares).length < parts.length) throw new Usage(`\`${text}\` names an adapter twice`);
  return shares;
}

/** NAME=VALUE */
function pair(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at < 1) throw new Usage(`\`${text}\` is not of the form NAME=VALUE`);
  return [text.slice(0, at), text.slice(at + 1)];
}

async function bytesOf(path: string): Promise<Uint8Array> {
  return readFile(path).catch((error) => {
    throw new Fault({ what: "cannot be read", where: path, found: String(error) });
  });
}

async function arraysOf(path: string): Promise<unknown> {
  const text = new TextDecoder().decode(await bytesOf(path));
  try {
    return JSON.parse(text);
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
        mix: { type: "string", multiple: true, default: [] },
        load: { type: "string", multiple: true, default: [] },
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
  if (values.adapter.length && values.mix.length) throw new Usage("either --adapter or --mix");
  const files = values.load.map(pair);
  const bundle = await Bundle.open(new Folder(folder));
  if (command === "verify") {
    await bundle.verify();
    return verify(bundle, values.json);
  }
  const inputs = values.inputs
    ? parseInputs(await arraysOf(values.inputs), bundle.manifest)
    : (await TextInputs.open(bundle)).batch(values.text);
  const adapters = values.adapter.map((name) => (name === "-" ? null : name));
  const rows = Object.values(inputs)[0]?.dims[0] ?? 0;
  return run(bundle, inputs, callOf(adapters, values.mix, rows), files);
}

try {
  await main();
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : String(error)}`);
  if (error instanceof Usage) console.error(USAGE);
  process.exitCode = error instanceof Usage ? 2 : 1;
}
