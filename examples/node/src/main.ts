#!/usr/bin/env node
/**
 * node dist/main.js verify BUNDLE [--json]
 * node dist/main.js run BUNDLE (--text TEXT [--pair TEXT]… | --inputs ARRAYS.json) [OPTION]…: see `usage`.
 *
 * Exit code 0: passed. 1: something failed, described on stderr. 2: the command line is wrong.
 */
import { readFile } from "node:fs/promises";

import { type Command, Usage, parse, usage } from "./commandLine.js";
import { inputRows } from "./core/arrays.js";
import { Bundle } from "./core/bundle.js";
import { Fault } from "./core/fault.js";
import { rowsOf } from "./core/options.js";
import { failure, selfCheck } from "./core/selfCheck.js";
import { Service, Unnamed } from "./core/service.js";
import { Folder } from "./folder.js";

async function verify(bundle: Bundle, asJson: boolean): Promise<void> {
  const findings = await selfCheck(bundle);
  if (asJson) console.log(JSON.stringify(findings, null, 2));
  else {
    const rows = findings.map(({ variant, graph, adapter, mixed, worst, compared = true }) => {
      const title = graph ? `${variant}, ${graph}` : variant;
      const share = compared ? +(100 * worst).toFixed(1) : "not compared";
      return { variant: title, adapter: mixed ? "mixed batch" : (adapter ?? "base"), "% of the allowed": share };
    });
    console.table(rows);
    for (const reason of new Set(findings.flatMap((finding) => finding.reason ?? []))) console.log(`runs not compared: ${reason}`);
  }
  if (!findings.length) {
    const fix = "build it with `--variants inputs,bank`";
    throw new Fault({ what: "has no graph that Node can run", fix });
  }
  const wrong = failure(findings);
  if (wrong) throw new Fault(wrong);
}

async function run(bundle: Bundle, command: Command): Promise<void> {
  const { inputs: file, texts } = command;
  const arrays = file === undefined ? null : inputRows(await arraysOf(file), bundle.manifest);
  const service = new Service(bundle);
  for (const [name, path] of command.load) await service.load(name, await bytesOf(path));
  const rows = rowsOf(command, arrays?.map((inputs) => ({ inputs })) ?? texts);
  console.log(JSON.stringify(await service.answer(rows), null, 2));
}

async function arraysOf(path: string): Promise<unknown> {
  const text = new TextDecoder().decode(await bytesOf(path));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Fault({ what: "cannot be read as JSON", where: path, found: String(error) });
  }
}

async function bytesOf(path: string): Promise<Uint8Array> {
  return readFile(path).catch((error) => {
    throw new Fault({ what: "cannot be read", where: path, found: String(error) });
  });
}

async function main(): Promise<void> {
  const command = parse(process.argv.slice(2));
  const bundle = await Bundle.open(new Folder(command.bundle));
  if (command.name === "run") return run(bundle, command);
  await bundle.verify();
  return verify(bundle, command.json);
}

for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1)); // runs the exit handlers

try {
  await main();
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : String(error)}`);
  if (error instanceof Usage) console.error(usage("main.js"));
  process.exitCode = error instanceof Usage || error instanceof Unnamed ? 2 : 1;
}
