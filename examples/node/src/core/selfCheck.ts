/** A bundle held against its golden vectors, in every way that this binding can run it. */
import type { Tensor } from "onnxruntime-common";

import type { Bundle, Choice } from "./bundle.js";
import type { GoldenRecord } from "./manifest.js";
import type { Inputs } from "./request.js";
import { Baked, Bank, FedAdapters, type Outputs } from "./runners.js";

export interface Finding {
  flavour: "inputs" | "bank" | "baked";
  /** Null is the base. */
  adapter: Choice;
  /** Rows of one batch through different adapters. */
  mixed: boolean;
  /** The largest deviation as a part of the allowed one; at most 1 is good. */
  worst: number;
}

/** The logits of classes that an adapter of a bank does not have are below. */
const MASKED = -1e30;

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
    return Object.fromEntries(this.inputNames.map((input) => [input, this.tensors.get(`${name}.input.${input}`)!]));
  }

  output(name: string, output: string): Tensor {
    return this.tensors.get(`${name}.output.${output}`)!;
  }
}

export async function selfCheck(bundle: Bundle): Promise<Finding[]> {
  const { graphs, adapters, batch_invariant: batchInvariant } = bundle.manifest;
  const findings: Finding[] = [];
  if (graphs.inputs) {
    const fed = await FedAdapters.open(bundle);
    for (const adapter of bundle.choices) {
      const worst = await worstOf(await Golden.of(bundle, adapter), (inputs) => fed.run(inputs, adapter));
      findings.push({ flavour: "inputs", adapter, mixed: false, worst });
    }
  }
  if (graphs.bank) {
    const bank = await Bank.open(bundle);
    for (const adapter of bundle.choices) {
      findings.push({ flavour: "bank", adapter, mixed: false, worst: await worstOfBank(bundle, bank, [adapter]) });
    }
    if (batchInvariant) {
      const worst = await worstOfBank(bundle, bank, bundle.choices);
      findings.push({ flavour: "bank", adapter: null, mixed: true, worst });
    }
  }
  for (const { name: adapter } of adapters.filter((record) => record.baked)) {
    const graph = await Baked.open(bundle, adapter);
    const worst = await worstOf(await Golden.of(bundle, adapter), (inputs) => graph.run(inputs));
    findings.push({ flavour: "baked", adapter, mixed: false, worst });
  }
  return findings;
}

async function worstOf(golden: Golden, run: (inputs: Inputs) => Promise<Outputs>): Promise<number> {
  let worst = 0;
  for (const name of golden.record.cases) {
    const outputs = await run(golden.inputs(name));
    for (const [output, allowed] of Object.entries(golden.record.absolute)) {
      const [found, expected] = [outputs[output] as Tensor, golden.output(name, output)];
      const alike = String(found.dims) === String(expected.dims);
      worst = Math.max(worst, alike ? deviation(numbers(found), numbers(expected), allowed) : Infinity);
    }
  }
  return worst;
}

/** Run every case with row r through choice r, beginning anew when they are used up. */
async function worstOfBank(bundle: Bundle, bank: Bank, choices: Choice[]): Promise<number> {
  const goldens = await Promise.all(choices.map((choice) => Golden.of(bundle, choice)));
  let worst = 0;
  for (const name of goldens[0]!.record.cases) {
    const inputs = goldens[0]!.inputs(name); // the cases of all adapters have the same inputs
    const rows = [...Array(Object.values(inputs)[0]!.dims[0]!).keys()];
    const outputs = await bank.run(inputs, rows.map((row) => choices[row % choices.length]!));
    for (const row of rows) {
      const golden = goldens[row % goldens.length]!;
      for (const [output, allowed] of Object.entries(golden.record.absolute)) {
        const found = outputs[output] as Tensor;
        worst = Math.max(worst, rowDeviation(found, golden.output(name, output), row, allowed));
      }
    }
  }
  return worst;
}

/** One row of a bank's output; along the last axis it may have more classes than the adapter, which must be masked. */
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

/** The largest deviation as a part of the allowed one; NaN is infinitely far away. */
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
