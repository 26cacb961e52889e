/**
 * Compares a bundle with its golden vectors, golden parts and recorded runs, in every graph that this binding runs, and with its golden
 * batches and golden texts.
 */
import { Tensor } from "onnxruntime-common";

import { MASKED } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import type { Facts } from "./fault.js";
import { replayBatches } from "./goldenBatches.js";
import { type Graph, GoldenCases } from "./goldenCases.js";
import { replayParts } from "./goldenParts.js";
import { type AnswerRows, replayTexts } from "./goldenTexts.js";
import type { GoldenRecord } from "./manifest.js";
import { compareRuns } from "./recordedRuns.js";
import type { Inputs } from "./request.js";
import { Baked, Bank, Fanout, FedAdapters, type Outputs } from "./runners.js";
import { Service } from "./service.js";

export interface Finding {
  /** A graph, for its golden vectors; or `parts`, `recorded` (runs), `batches` or `texts`. */
  variant: Graph["name"] | "parts" | "recorded" | "batches" | "texts";
  /** Of golden parts and recorded runs: the graph that ran. */
  graph?: Graph["name"];
  /** Null is the base. */
  adapter: Choice;
  /** Whether the rows of a call have different adapters. */
  mixed: boolean;
  /** The largest error as a part of the allowed one; infinite if anything but a number differs. */
  worst: number;
  passed: boolean;
  /** Of texts: their ids were compared, too. */
  tokenized?: true;
  /** The texts, or the rows of batches, that differ; or the faults that golden parts show. */
  faults?: { name: string; fault: string }[];
  /** Of recorded runs: whether digests were compared; they mean nothing elsewhere than where they were recorded. */
  compared?: boolean;
  /** Why recorded runs were not compared. */
  reason?: string;
}

/** The number of faults that a message names. */
const SHOWN = 5;

type Found = Omit<Finding, "passed">;

type RunRows = (inputs: Inputs, rows: Choice[]) => Promise<Outputs>;

/** The first finding that did not pass, as an error; null if all passed. */
export function failure(findings: Finding[]): Facts | null {
  const different = findings.find(({ faults }) => faults?.length);
  if (different) {
    const [{ name, fault }, names] = [different.faults![0]!, different.faults!.map((each) => `\`${each.name}\``)];
    const { variant, graph, mixed, adapter } = different;
    const where = mixed ? "mixed batch" : (adapter ?? "base");
    if (variant === "parts") {
      const more = names.length > SHOWN ? ` and ${names.length - SHOWN} more` : "";
      const others = names.length > 1 ? `; less likely ${names.slice(1, SHOWN).join(", ")}${more}` : "";
      const found = `outputs that move as with \`${name}\` in \`${graph}\`, ${fault}${others}`;
      return { what: "golden parts differ: this machine does not compute what the reference computed", where, found };
    }
    const found = `${names.length} that differ, ${names.join(", ")}; \`${name}\`: ${fault}`;
    return { what: `golden ${variant} differ: this client does not answer them as the reference does`, where, found };
  }
  const wrong = findings.find(({ passed }) => !passed);
  if (!wrong) return null;
  if (wrong.variant === "recorded") {
    const what = "recorded runs differ: bits differ from the build's, although the base's are equal";
    return { what, where: `${wrong.adapter} in \`${wrong.graph}\``, fix: "see whether its tensors arrive as they are in its file" };
  }
  const where = `${wrong.mixed ? "mixed batch" : (wrong.adapter ?? "base")} in variant \`${wrong.variant}\``;
  return { what: "this machine does not compute what the reference computed", where };
}

/** @param texts whether golden texts run, too. */
export async function selfCheck(bundle: Bundle, { texts = true } = {}): Promise<Finding[]> {
  const bank = bundle.manifest.graphs.bank ? await Bank.open(bundle) : null;
  const fanout = bundle.manifest.graphs.fanout ? await Fanout.open(bundle) : null;
  const graphs = await openGraphs(bundle, bank, fanout);
  const found: Found[] = [];
  for (const graph of graphs.filter(({ name }) => name === "inputs" || name === "baked")) found.push(...(await checkUniform(bundle, graph)));
  if (bank) found.push(...(await checkRows(bundle, "bank", async (inputs, rows) => (await bank.run(inputs, rows)).outputs)));
  if (fanout) found.push(...(await checkRows(bundle, "fanout", fannedOut(fanout))));
  found.push(...(await replayParts(bundle, graphs)).map((each) => ({ variant: "parts", mixed: false, ...each }) as const));
  found.push(...(await compareRuns(bundle, graphs)).map((each) => ({ variant: "recorded", mixed: false, ...each }) as const));
  if (bundle.manifest.graphs.inputs || bank) found.push(...(await checkAnswers(bundle, texts)));
  return found.map((finding) => ({ ...finding, passed: finding.worst <= 1 && !finding.faults?.length }));
}

/** The graphs that this binding runs, each with one adapter for all rows of a call. */
async function openGraphs(bundle: Bundle, bank: Bank | null, fanout: Fanout | null): Promise<Graph[]> {
  const found: Graph[] = [];
  const everyRow = (inputs: Inputs, choice: Choice) => Array<Choice>(Object.values(inputs)[0]!.dims[0]!).fill(choice);
  if (bundle.manifest.graphs.inputs) {
    const fed = await FedAdapters.open(bundle);
    found.push({ name: "inputs", choices: bundle.choices, run: async (...call) => (await fed.run(...call)).outputs });
  }
  for (const [name, graph] of [["bank", bank && bank.run.bind(bank)], ["fanout", fanout && fanout.runRows.bind(fanout)]] as const) {
    const run = async (inputs: Inputs, choice: Choice) => (await graph!(inputs, everyRow(inputs, choice))).outputs;
    if (graph) found.push({ name, choices: bundle.bank.rows, run });
  }
  for (const { name } of bundle.manifest.adapters.filter((record) => record.baked)) {
    const baked = await Baked.open(bundle, name);
    found.push({ name: "baked", choices: [name], run: async (inputs) => (await baked.run(inputs)).outputs });
  }
  return found;
}

async function checkUniform(bundle: Bundle, graph: Graph): Promise<Found[]> {
  const findings: Found[] = [];
  for (const adapter of graph.choices) {
    const golden = await GoldenCases.of(bundle, bundle.golden(adapter));
    const worst = await worstOf(golden, (inputs) => graph.run(inputs, adapter));
    findings.push({ variant: graph.name, adapter, mixed: false, worst });
  }
  return findings;
}

/** By the entry that users call. */
async function checkAnswers(bundle: Bundle, withTexts: boolean): Promise<Found[]> {
  const service = new Service(bundle);
  const answer: AnswerRows = (rows) => service.answer(rows);
  const [texts, batches] = [withTexts ? await replayTexts(bundle, answer) : [], await replayBatches(bundle, answer)];
  return [
    ...texts.map((set) => ({ variant: "texts", mixed: false, tokenized: true, ...set }) as const),
    ...(batches ? [{ variant: "batches", adapter: null, mixed: true, ...batches } as const] : []),
  ];
}

/** Each row twice, first in reverse order, so that rows that are mixed up give wrong results. */
function fannedOut(fanout: Fanout): RunRows {
  return async (inputs, choices) => {
    const places = [...choices.keys()];
    const { outputs } = await fanout.run(inputs, [...[...places].reverse(), ...places], [...[...choices].reverse(), ...choices]);
    return Object.fromEntries(Object.entries(outputs).map(([name, found]) => [name, secondHalf(found)]));
  };
}

function secondHalf(found: Tensor): Tensor {
  const data = numbers(found);
  const [rows, ...rest] = found.dims;
  return new Tensor("float32", data.slice(data.length / 2), [rows! / 2, ...rest]);
}

async function checkRows(bundle: Bundle, variant: "bank" | "fanout", run: RunRows): Promise<Found[]> {
  const choices = bundle.bank.rows;
  const goldens = await Promise.all(choices.map((choice) => GoldenCases.of(bundle, bundle.golden(choice))));
  const findings: Found[] = [];
  for (const [at, adapter] of choices.entries()) {
    findings.push({ variant, adapter, mixed: false, worst: await worstOfRows([goldens[at]!], [adapter], run) });
  }
  if (bundle.manifest.batch_invariant) {
    findings.push({ variant, adapter: null, mixed: true, worst: await worstOfRows(goldens, choices, run) });
  }
  return findings;
}

async function worstOf(golden: GoldenCases<GoldenRecord>, run: (inputs: Inputs) => Promise<Outputs>): Promise<number> {
  let worst = 0;
  for (const name of golden.record.cases) {
    const outputs = golden.comparable(await run(golden.inputs(name)));
    for (const [output, allowed] of Object.entries(golden.record.absolute)) {
      const [found, expected] = [outputs[output]!, golden.output(name, output)];
      const alike = String(found.dims) === String(expected.dims);
      worst = Math.max(worst, alike ? deviation(numbers(found), numbers(expected), allowed) : Infinity);
    }
  }
  return worst;
}

/** Run every case with a choice for each row, until every choice has had a turn. */
async function worstOfRows(goldens: GoldenCases<GoldenRecord>[], choices: Choice[], run: RunRows): Promise<number> {
  let worst = 0;
  for (const name of goldens[0]!.record.cases) {
    const inputs = goldens[0]!.inputs(name); // the cases of all adapters have the same inputs
    const batch = Object.values(inputs)[0]!.dims[0]!;
    for (let first = 0; first < choices.length; first += batch) {
      const turns = Array.from({ length: batch }, (_, row) => (first + row) % choices.length);
      const outputs = goldens[0]!.comparable(await run(inputs, turns.map((turn) => choices[turn]!)));
      worst = Math.max(worst, ...turns.map((turn, row) => deviationOfRow(goldens[turn]!, name, outputs, row)));
    }
  }
  return worst;
}

function deviationOfRow(golden: GoldenCases<GoldenRecord>, name: string, outputs: Outputs, row: number): number {
  const each = Object.entries(golden.record.absolute).map(([output, allowed]) => {
    return rowDeviation(outputs[output]!, golden.output(name, output), row, allowed);
  });
  return Math.max(...each);
}

/** The error of a row of a bank's output. Classes that the adapter does not have must be masked. */
function rowDeviation(found: Tensor, expected: Tensor, row: number, allowed: number): number {
  const [wide, own] = [found.dims.at(-1)!, expected.dims.at(-1)!];
  if (String(found.dims.slice(0, -1)) !== String(expected.dims.slice(0, -1)) || wide < own) return Infinity;
  const lines = expected.size / expected.dims[0]! / own;
  let worst = 0;
  for (let line = row * lines; line < (row + 1) * lines; line++) {
    const values = numbers(found).subarray(line * wide, (line + 1) * wide);
    const wanted = numbers(expected).subarray(line * own, (line + 1) * own);
    worst = Math.max(worst, deviation(values.subarray(0, own), wanted, allowed));
    if (!values.subarray(own).every((value) => value < MASKED)) return Infinity;
  }
  return worst;
}

/** The largest error as a part of the allowed one; infinite for NaN. */
function deviation(found: Float32Array, expected: Float32Array, allowed: number): number {
  let worst = 0;
  for (let at = 0; at < expected.length; at++) {
    const difference = Math.abs(found[at]! - expected[at]!);
    worst = Number.isNaN(difference) ? Infinity : Math.max(worst, difference);
  }
  return allowed > 0 ? worst / allowed : worst === 0 ? 0 : Infinity;
}

function numbers(tensor: Tensor): Float32Array {
  return tensor.data as Float32Array;
}
