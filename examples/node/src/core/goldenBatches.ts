/** Golden batches: requests of several rows, and the answer to each row alone (docs/reference/format.md, "Golden batches"). */
import type { Keys, Nested } from "./answers.js";
import { parseInputs } from "./arrays.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type Allowed, type ContextRange, compared, contextOf } from "./goldenAnswers.js";
import type { AnswerRows } from "./goldenTexts.js";

interface GoldenRow extends Allowed {
  adapter: Choice;
  inputs: Record<string, Nested>;
  context: ContextRange;
  answer: Keys;
}

interface GoldenBatches {
  version: string;
  batches: { name: string; rows: GoldenRow[] }[];
}

/** The result of all batches. */
export interface BatchFindings {
  /** The largest error as a part of the allowed one; infinite if anything but a number differs. */
  worst: number;
  /** The rows with another answer, and the difference. */
  faults: { name: string; fault: string }[];
}

/** Send each batch as one request, and compare the answers. Null if the bundle has no golden batches. */
export async function replayBatches(bundle: Bundle, answer: AnswerRows): Promise<BatchFindings | null> {
  const { golden_batches: path } = bundle.manifest;
  if (!path) return null;
  const { version, batches } = JSON.parse(new TextDecoder().decode(await bundle.read(path))) as GoldenBatches;
  if (version?.split(".")[0] !== "1" || !batches?.length) {
    const [what, found] = ["has no golden batches that this client can read", `version ${version}`];
    throw new Fault({ what, where: path, found, expected: "1.x" });
  }
  const found: BatchFindings = { worst: 0, faults: [] };
  for (const { name, rows } of batches) {
    const asked = rows.map(({ adapter, inputs, context }) => {
      const lists = Object.fromEntries(Object.entries(inputs).map(([input, list]) => [input, [list]]));
      return { inputs: parseInputs(lists, bundle.manifest), adapter, ...contextOf(context, tokensOf(inputs, adapter, bundle)) };
    });
    try {
      const answers = await answer(asked);
      for (const [at, { answer: expected, absolute, decided = true }] of rows.entries()) {
        const { worst, fault } = compared(answers[at]!, expected, { absolute, decided });
        found.worst = Math.max(found.worst, worst);
        if (fault) found.faults.push({ name: `${name}, row ${at}`, fault });
      }
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      found.worst = Infinity;
      found.faults.push({ name, fault: `is refused: ${error.message}` });
    }
  }
  return found;
}

/** The number of tokens of a row that have logits. */
function tokensOf(inputs: GoldenRow["inputs"], adapter: Choice, { manifest }: Bundle): number {
  const output = manifest.adapters.find(({ name }) => name === adapter)?.output;
  const axis = manifest.outputs.find(({ name }) => name === output)?.axes[1];
  const record = manifest.inputs.find(({ axes }) => axes[1] === axis) ?? manifest.inputs[0]!;
  return (inputs[record.name] as Nested[]).length;
}
