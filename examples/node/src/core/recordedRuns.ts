/**
 * Recorded runs: the digests of what ONNX Runtime gave when the bundle was built (docs/reference/format.md, "Recorded runs").
 *
 * The base is the witness: in a graph in which it gives the recorded bits, an adapter gives its own, or its tensors did not arrive as
 * they were. Everywhere else digests say nothing.
 */
import { type Bundle, type Choice, measured } from "./bundle.js";
import { type Graph, GoldenCases, ownNumbers } from "./goldenCases.js";
import type { RecordedRuns } from "./manifest.js";

const OTHER_BASE = "the base's bits differ here: another processor, or another build of ONNX Runtime";
const NO_BASE = "the base, which shows whether this processor rounds alike, did not run";
const NO_DIGEST = "its bits depend on the number of threads";

/** The result of the recorded runs of the base or an adapter in a graph. */
export interface RecordedFindings {
  /** Absent where the runs of no graph can be compared. */
  graph?: Graph["name"];
  /** Null is the base; if that is not compared, no adapter is. */
  adapter: Choice;
  compared: boolean;
  /** Why they are not compared. */
  reason?: string;
  /** Infinite if the digest differs, otherwise 0. */
  worst: number;
}

/** Compare the digests of each graph where they mean something. */
export async function compareRuns(bundle: Bundle, graphs: Graph[]): Promise<RecordedFindings[]> {
  const { recorded } = bundle.manifest;
  if (!recorded) return [];
  const elsewhere = otherRuntime(bundle, recorded);
  if (elsewhere !== null) return graphs.length ? [{ adapter: null, compared: false, reason: elsewhere, worst: 0 }] : [];
  const found: RecordedFindings[] = [];
  const of = (name: string) => graphs.find((graph) => graph.name === name);
  for (const graph of graphs) {
    const reason = await distrust(bundle, recorded, of(graph.name === "baked" ? "inputs" : graph.name));
    if (reason === null) found.push(...(await comparedIn(bundle, recorded, graph)));
    else found.push({ graph: graph.name, adapter: null, compared: false, reason, worst: 0 });
  }
  return found;
}

function otherRuntime({ runtime: { version, provider } }: Bundle, recorded: RecordedRuns): string | null {
  if (version === recorded.runtime && provider === recorded.provider) return null;
  return `recorded with onnxruntime ${recorded.runtime}, ${recorded.provider}; this is ${version}, ${provider}`;
}

/** Why digests of adapters mean nothing in a graph; null if the base has the recorded bits there. */
async function distrust(bundle: Bundle, recorded: RecordedRuns, graph: Graph | undefined): Promise<string | null> {
  if (!graph) return NO_BASE;
  const expected = bundle.manifest.golden.recorded?.[graph.name];
  if (expected === undefined) return NO_DIGEST;
  return (await digest(bundle, recorded, graph, null)) === expected ? null : OTHER_BASE;
}

async function comparedIn(bundle: Bundle, recorded: RecordedRuns, graph: Graph): Promise<RecordedFindings[]> {
  const found: RecordedFindings[] = [];
  for (const adapter of graph.choices) {
    const [at, expected] = [{ graph: graph.name, adapter }, bundle.golden(adapter).recorded?.[graph.name]];
    if (expected === undefined) found.push({ ...at, compared: false, reason: NO_DIGEST, worst: 0 });
    else {
      // the base was compared to come here
      const same = adapter === null || (await digest(bundle, recorded, graph, adapter)) === expected;
      found.push({ ...at, compared: true, worst: same ? 0 : Infinity });
    }
  }
  return found;
}

/** The sha256 of the outputs of the recorded cases, sorted by name within a case. */
async function digest(bundle: Bundle, { cases }: RecordedRuns, graph: Graph, choice: Choice): Promise<string> {
  const golden = await GoldenCases.of(bundle, bundle.golden(choice));
  const parts: Uint8Array[] = [];
  for (const name of cases) {
    const outputs = await graph.run(golden.inputs(name), choice);
    for (const output of Object.keys(golden.record.absolute).sort()) {
      const whole = bundle.manifest.sketches[output] && outputs[output]; // digests are not of sketches
      const own = ownNumbers(outputs[output], whole ?? golden.output(name, output));
      if (own) parts.push(new Uint8Array(own.buffer, own.byteOffset, own.byteLength));
    }
  }
  return (await measured(new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer()))).sha256;
}
