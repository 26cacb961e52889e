/** Compares a bundle with its golden vectors, in every graph that this binding runs, its golden batches and its golden texts. */
import { Tensor } from "onnxruntime-common";

import { MASKED } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { type Facts, Fault } from "./fault.js";
import { replayBatches } from "./goldenBatches.js";
import { type AnswerRows, replayTexts } from "./goldenTexts.js";
import type { GoldenRecord } from "./manifest.js";
import type { Inputs } from "./request.js";
import { Baked, Bank, Fanout, FedAdapters, type Outputs } from "./runners.js";
import { Service } from "./service.js";

export interface Finding {
  /** A graph, or `batches` for the golden batches, `texts` for the golden texts. */
  flavour: "inputs" | "bank" | "fanout" | "baked" | "batches" | "texts";
  /** Null is the base. */
  adapter: Choice;
  /** Whether the rows of a call have different adapters. */
  mixed: boolean;
  /** The largest error as a part of the allowed one; infinite if anything but a number differs. */
  worst: number;
  passed: boolean;
  /** Of texts: their ids were compared, too. */
  tokenized?: true;
  /** The texts, or the rows of batches, that differ. */
  faults?: { name: string; fault: string }[];
}

type Found = Omit<Finding, "passed">;

type RunRows = (inputs: Inputs, rows: Choice[]) => Promise<Outputs>;

/** The golden vectors of the base or of one adapter. */
class Golden {
  private constructor(
    readonly record: GoldenRecord,
    private readonly tensors: Map<string, Tensor>,
    private readonly inputNames: string[],
  ) {}

  static async of(bundle: Bundle, choice: Choice): Promise<Golden> {
    const record = bundle.golden(choice);
    return new Golden(record, await bundle.tensors(record.path), bundle.manifest.inputs.map((input) => input.name));
  }

  inputs(name: string): Inputs {
    return Object.fromEntries(this.inputNames.map((input) => [input, this.tensor(`${name}.input.${input}`)]));
  }

  output(name: string, output: string): Tensor {
    return this.tensor(`${name}.output.${output}`);
  }

  private tensor(name: string): Tensor {
    const tensor = this.tensors.get(name);
    if (!tensor) throw new Fault({ what: `has no tensor \`${name}\``, where: this.record.path });
    return tensor;
  }
}

/** The first finding that did not pass, as an error; null if all passed. */
export function failure(findings: Finding[]): Facts | null {
  const different = findings.find(({ faults }) => faults?.length);
  if (different) {
    const [{ name, fault }, names] = [different.faults![0]!, different.faults!.map((each) => `\`${each.name}\``)];
    const found = `${names.length} that differ, ${names.join(", ")}; \`${name}\`: ${fault}`;
    const what = `golden ${different.flavour} differ: this client does not answer them as the reference does`;
    return { what, where: different.mixed ? "mixed batch" : (different.adapter ?? "base"), found };
  }
  const wrong = findings.find(({ passed }) => !passed);
  if (!wrong) return null;
  const where = `${wrong.mixed ? "mixed batch" : (wrong.adapter ?? "base")} in flavour \`${wrong.flavour}\``;
  return { what: "this machine does not compute what the reference computed", where };
}

export async function selfCheck(bundle: Bundle): Promise<Finding[]> {
  const { graphs } = bundle.manifest;
  const fed = graphs.inputs ? await FedAdapters.open(bundle) : null;
  const bank = graphs.bank ? await Bank.open(bundle) : null;
  const found = [
    ...(fed ? await checkFed(bundle, fed) : []),
    ...(bank ? await checkRows(bundle, "bank", async (inputs, rows) => (await bank.run(inputs, rows)).outputs) : []),
    ...(graphs.fanout ? await checkRows(bundle, "fanout", fannedOut(await Fanout.open(bundle))) : []),
    ...(await checkBaked(bundle)),
    ...(fed || bank ? await checkAnswers(bundle) : []),
  ];
  return found.map((finding) => ({ ...finding, passed: finding.worst <= 1 && !finding.faults?.length }));
}

async function checkFed(bundle: Bundle, fed: FedAdapters): Promise<Found[]> {
  const findings: Found[] = [];
  for (const adapter of bundle.choices) {
    const run = async (inputs: Inputs) => (await fed.run(inputs, adapter)).outputs;
    findings.push({ flavour: "inputs", adapter, mixed: false, worst: await worstOf(await Golden.of(bundle, adapter), run) });
  }
  return findings;
}

async function checkBaked(bundle: Bundle): Promise<Found[]> {
  const findings: Found[] = [];
  for (const { name: adapter } of bundle.manifest.adapters.filter((record) => record.baked)) {
    const graph = await Baked.open(bundle, adapter);
    const run = async (inputs: Inputs) => (await graph.run(inputs)).outputs;
    findings.push({ flavour: "baked", adapter, mixed: false, worst: await worstOf(await Golden.of(bundle, adapter), run) });
  }
  return findings;
}

/** By the entry that users call. */
async function checkAnswers(bundle: Bundle): Promise<Found[]> {
  const service = new Service(bundle);
  const answer: AnswerRows = (rows) => service.answer(rows);
  const [texts, batches] = [await replayTexts(bundle, answer), await replayBatches(bundle, answer)];
  return [
    ...texts.map((set) => ({ flavour: "texts", mixed: false, tokenized: true, ...set }) as const),
    ...(batches ? [{ flavour: "batches", adapter: null, mixed: true, ...batches } as const] : []),
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

async function checkRows(bundle: Bundle, flavour: "bank" | "fanout", run: RunRows): Promise<Found[]> {
  const choices = bundle.bank.rows;
  const goldens = await Promise.all(choices.map((choice) => Golden.of(bundle, choice)));
  const findings: Found[] = [];
  for (const [at, adapter] of choices.entries()) {
    findings.push({ flavour, adapter, mixed: false, worst: await worstOfRows([goldens[at]!], [adapter], run) });
  }
  if (bundle.manifest.batch_invariant) {
    findings.push({ flavour, adapter: null, mixed: true, worst: await worstOfRows(goldens, choices, run) });
  }
  return findings;
}

async function worstOf(golden: Golden, run: (inputs: Inputs) => Promise<Outputs>): Promise<number> {
  let worst = 0;
  for (const name of golden.record.cases) {
    const outputs = await run(golden.inputs(name));
    for (const [output, allowed] of Object.entries(golden.record.absolute)) {
      const [found, expected] = [outputs[output]!, golden.output(name, output)];
      const alike = String(found.dims) === String(expected.dims);
      worst = Math.max(worst, alike ? deviation(numbers(found), numbers(expected), allowed) : Infinity);
    }
  }
  return worst;
}

/** Run every case with a choice for each row, until every choice has had a turn. */
async function worstOfRows(goldens: Golden[], choices: Choice[], run: RunRows): Promise<number> {
  let worst = 0;
  for (const name of goldens[0]!.record.cases) {
    const inputs = goldens[0]!.inputs(name); // the cases of all adapters have the same inputs
    const batch = Object.values(inputs)[0]!.dims[0]!;
    for (let first = 0; first < choices.length; first += batch) {
      const turns = Array.from({ length: batch }, (_, row) => (first + row) % choices.length);
      const outputs = await run(inputs, turns.map((turn) => choices[turn]!));
      worst = Math.max(worst, ...turns.map((turn, row) => deviationOfRow(goldens[turn]!, name, outputs, row)));
    }
  }
  return worst;
}

function deviationOfRow(golden: Golden, name: string, outputs: Outputs, row: number): number {
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
