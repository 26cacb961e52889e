/** Golden parts: they show an adapter that is applied in part where the budget of an element is too wide (docs/reference/format.md, "Golden parts"). */
import type { Bundle } from "./bundle.js";
import { Fault } from "./fault.js";
import { type Graph, GoldenCases, ownNumbers } from "./goldenCases.js";
import type { PartsRecord } from "./manifest.js";

/** The result of the golden parts of an adapter in a graph. */
export interface PartFindings {
  graph: Graph["name"];
  adapter: string;
  /** The largest value as a part of its limit; infinite for NaN. */
  worst: number;
  /** The faults whose values exceed their limits; the likeliest first. */
  faults: { name: string; fault: string }[];
}

/** Run the golden parts of every adapter that has some, in each graph. */
export async function replayParts(bundle: Bundle, graphs: Graph[]): Promise<PartFindings[]> {
  const found: PartFindings[] = [];
  for (const { name: adapter, golden } of bundle.manifest.adapters.filter((record) => record.golden.parts)) {
    const cases = await GoldenCases.of(bundle, golden.parts!);
    checkWeights(cases);
    for (const graph of graphs.filter(({ choices }) => choices.includes(adapter))) {
      found.push(findingsOf(graph.name, adapter, golden.parts!, await sums(cases, adapter, graph)));
    }
  }
  return found;
}

function findingsOf(graph: Graph["name"], adapter: string, { parts }: PartsRecord, totals: number[]): PartFindings {
  const found: PartFindings = { graph, adapter, worst: 0, faults: [] };
  const values = new Map<string, number>();
  for (const [at, { fault: name, factor, limit }] of parts.entries()) {
    const value = factor * totals[at]!;
    const ratio = Number.isNaN(value) ? Infinity : Math.abs(value) / (limit || Number.MIN_VALUE);
    found.worst = Math.max(found.worst, ratio);
    if (ratio > 1) found.faults.push({ name, fault: `${value.toPrecision(2)} of ±${limit}` });
    values.set(name, value);
  }
  // one fault moves the outputs of others, too: its own value is the one near 1
  const distance = ({ name }: { name: string }) => Math.abs(values.get(name)! - 1);
  found.faults.sort((one, other) => distance(one) - distance(other) || 0);
  return found;
}

/** For each part Σ weight · (found − expected) in all cases; NaN if an output has another shape. */
async function sums(golden: GoldenCases<PartsRecord>, adapter: string, graph: Graph): Promise<number[]> {
  const { cases, parts } = golden.record;
  const totals = parts.map(() => 0);
  for (const name of cases) {
    const outputs = golden.comparable(await graph.run(golden.inputs(name), adapter));
    for (const [at, { output }] of parts.entries()) {
      const weights = golden.weights(name, at);
      if (!weights) continue;
      const expected = golden.output(name, output);
      const [found, wanted] = [ownNumbers(outputs[output], expected), expected.data as Float32Array];
      totals[at]! += found ? projection(found, wanted, weights.data as Int8Array) : NaN;
    }
  }
  return totals;
}

function projection(found: Float32Array, expected: Float32Array, weights: Int8Array): number {
  let sum = 0;
  for (let at = 0; at < expected.length; at++) sum += weights[at]! * (found[at]! - expected[at]!);
  return sum;
}

/** Throws a Fault if a part has no weights, which would pass, or weights that do not fit its output. */
function checkWeights(golden: GoldenCases<PartsRecord>): void {
  const { path, cases, parts } = golden.record;
  for (const [at, { fault, output }] of parts.entries()) {
    const counted = cases.filter((name) => golden.weights(name, at));
    const fits = (name: string) => {
      const [weights, expected] = [golden.weights(name, at)!, golden.output(name, output)];
      return weights.type === "int8" && expected.type === "float32" && String(weights.dims) === String(expected.dims);
    };
    if (counted.length && counted.every(fits)) continue;
    const expected = `int8 weights in the shape of \`${output}\``;
    throw new Fault({ what: `has no weights for \`${fault}\`, or others`, where: path, expected, fix: "build the bundle again" });
  }
}
