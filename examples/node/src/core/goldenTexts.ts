/** Golden texts: the ids and answers that the model's own tokenizer and the reference give (docs/reference/format.md, "Golden texts"). */
import type { Keys } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type ContextRange, compared, contextOf } from "./goldenAnswers.js";
import type { Row as AnyRow } from "./service.js";
import { type Asked, type TextAnswer, TextReader } from "./text.js";
import type { Row } from "./tokens.js";

interface GoldenText {
  name: string;
  text: string;
  /** The second text of a pair. */
  pair: string | null;
  /** Of an embedder with prefixes of queries and of documents: which of the two it is. */
  side?: "query" | "document" | null;
  ids: number[];
  token_type_ids: number[];
  /** Null if none was computed. */
  answer: Keys | null;
  context: ContextRange;
  /** Whether rounding cannot change a label or a place. */
  decided: boolean;
}

interface GoldenTextSet {
  /** Null is the base, whose texts have ids and no answers. */
  adapter: Choice;
  absolute: number;
  texts: GoldenText[];
}

/** The result of the texts of one set. */
export interface TextFindings {
  adapter: Choice;
  /** The largest deviation as a part of the allowed one; infinite where ids, labels or places differ. */
  worst: number;
  /** The texts whose ids or answer differ, and how. */
  faults: { name: string; fault: string }[];
}

/** The entry for users: answers rows. */
export type AnswerRows = (rows: AnyRow[]) => Promise<TextAnswer[]>;

/** Make tokens of the golden texts of each set as for users of its adapter, and answer their ids. */
export async function replayTexts(bundle: Bundle, answer: AnswerRows): Promise<TextFindings[]> {
  const { golden_texts: path, adapters, text } = bundle.manifest;
  if (!path || !text) return [];
  const { digest, sets } = JSON.parse(new TextDecoder().decode(await bundle.read(path))) as { digest: string; sets: GoldenTextSet[] };
  if (digest !== text.digest) {
    throw new Fault({ what: "golden texts of another tokenizer", where: path, found: digest, expected: text.digest });
  }
  const reader = await TextReader.open(bundle);
  const found: TextFindings[] = [];
  for (const adapter of [null, ...adapters.flatMap(({ name, task }) => (task ? [name] : []))]) {
    const set = sets.find((each) => each.adapter === adapter);
    if (!set?.texts.length) throw new Fault({ what: "lacks golden texts", where: path, expected: `those of \`${adapter ?? "base"}\`` });
    found.push(await replay(set, reader, bundle, answer));
  }
  return found;
}

async function replay(set: GoldenTextSet, reader: TextReader, bundle: Bundle, answer: AnswerRows): Promise<TextFindings> {
  const { adapter, absolute, texts } = set;
  const task = adapter === null ? null : bundle.adapter(adapter).task;
  const faults = new Map<string, string>();
  for (const golden of texts) {
    const fault = refusal(() => idsFault(reader.read(askedOf(golden), adapter, task).rows[0]!, golden));
    if (fault) faults.set(golden.name, fault);
  }
  const answered = adapter === null ? [] : texts.filter((golden) => golden.answer !== null);
  const rows = answered.map(({ ids, token_type_ids: types, context }) => {
    return { inputs: reader.inputs({ ids, types }), pads: true, adapter, ...contextOf(context, ids.length) };
  });
  const found = rows.length ? await answer(rows) : [];
  let worst = faults.size ? Infinity : 0;
  for (const [at, { name, answer: expected, decided }] of answered.entries()) {
    const one = compared(found[at]!, expected!, { absolute, decided });
    worst = Math.max(worst, one.worst);
    if (one.fault && !faults.has(name)) faults.set(name, one.fault);
  }
  return { adapter, worst, faults: Array.from(faults, ([name, fault]) => ({ name, fault })) };
}

function askedOf({ text, pair, side }: GoldenText): Asked {
  return { text, ...(pair === null ? {} : { pair }), ...(side ? { side } : {}) };
}

function refusal(work: () => string | null): string | null {
  try {
    return work();
  } catch (error) {
    if (error instanceof Fault) return `is refused: ${error.message}`;
    throw error;
  }
}

function idsFault({ ids, types }: Row, golden: GoldenText): string | null {
  if (String(ids) !== String(golden.ids)) return `ids found ${shown(ids, golden.ids)}, expected ${shown(golden.ids, ids)}`;
  return String(types) === String(golden.token_type_ids) ? null : "other token types";
}

/** The ids from the first one that differs, and their number. */
function shown(ids: number[], others: number[]): string {
  const first = ids.findIndex((id, at) => id !== others[at]);
  return `… ${ids.slice(Math.max(first, 0), Math.max(first, 0) + 4).join(" ")} … (${ids.length} tokens)`;
}
