/** Golden texts: what the model's own tokenizer and the reference say of texts (docs/format.md, "Golden texts"). */
import { type Answer, answers } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";
import type { Result } from "./runners.js";
import { type Asked, TextReader } from "./text.js";
import type { Row } from "./tokens.js";

interface GoldenText {
  name: string;
  text: string;
  /** The second text of a pair. */
  pair: string | null;
  ids: number[];
  token_type_ids: number[];
  /** Null where none was computed. */
  answer: Answer | null;
  /** Of a span the tokens that may be the answer: the first, and the one behind the last. */
  context: [number, number] | null;
  /** Whether no other choice is nearer than rounding. */
  decided: boolean;
}

interface GoldenTextSet {
  /** Null is the base, whose texts have ids and no answers. */
  adapter: Choice;
  absolute: number;
  texts: GoldenText[];
}

/** What became of the texts of one set. */
export interface TextFindings {
  adapter: Choice;
  /** The largest deviation as a part of the allowed one; infinite where ids, labels or places differ. */
  worst: number;
  /** The texts whose ids or answer differ, and how. */
  faults: { name: string; fault: string }[];
}

interface Allowed {
  absolute: number;
  decided: boolean;
}

interface Compared {
  worst: number;
  fault: string | null;
}

const FINE: Compared = { worst: 0, fault: null };

type Run = (inputs: Inputs, adapter: string, rows: number) => Promise<Result>;

/** Read the golden texts of every set as those of its adapter's users, and run the adapter on their ids. */
export async function replayTexts(bundle: Bundle, run: Run): Promise<TextFindings[]> {
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
    found.push(await replay(set, reader, bundle, run));
  }
  return found;
}

async function replay({ adapter, absolute, texts }: GoldenTextSet, reader: TextReader, bundle: Bundle, run: Run): Promise<TextFindings> {
  const task = adapter === null ? null : bundle.adapter(adapter).task;
  const faults = new Map<string, string>();
  for (const golden of texts) {
    const fault = refusal(() => idsFault(reader.read(askedOf(golden), adapter, task).rows[0]!, golden));
    if (fault) faults.set(golden.name, fault);
  }
  let worst = faults.size ? Infinity : 0;
  const answered = adapter === null ? [] : texts.filter(({ answer }) => answer !== null);
  for (const length of new Set(answered.map(({ ids }) => ids.length))) {
    const group = answered.filter(({ ids }) => ids.length === length);
    const inputs = reader.inputs(group.map(({ ids, token_type_ids: types }) => ({ ids, types })));
    const said = answers(await run(inputs, adapter!, group.length), inputs, group.map(contextOf));
    for (const [at, { name, answer, decided, ids }] of group.entries()) {
      const own = said[at]!; // without the tokens that the row was filled up with
      const one = compared("tokens" in own ? { ...own, tokens: own.tokens.slice(0, ids.length) } : own, answer, { absolute, decided });
      worst = Math.max(worst, one.worst);
      if (one.fault && !faults.has(name)) faults.set(name, one.fault);
    }
  }
  return { adapter, worst, faults: Array.from(faults, ([name, fault]) => ({ name, fault })) };
}

function askedOf({ text, pair }: GoldenText): Asked {
  return pair === null ? text : { text, pair };
}

function refusal(work: () => string | null): string | null {
  try {
    return work();
  } catch (error) {
    if (error instanceof Fault) return `is refused: ${error.message}`;
    throw error;
  }
}

function contextOf({ ids, context }: GoldenText): boolean[] | null {
  return context && ids.map((_, at) => at >= context[0] && at < context[1]);
}

function idsFault({ ids, types }: Row, golden: GoldenText): string | null {
  if (String(ids) !== String(golden.ids)) return `ids found ${shown(ids, golden.ids)}, expected ${shown(golden.ids, ids)}`;
  return String(types) === String(golden.token_type_ids) ? null : "other token types";
}

/** The ids from the first that differs on, and how many there are. */
function shown(ids: number[], others: number[]): string {
  const first = ids.findIndex((id, at) => id !== others[at]);
  return `… ${ids.slice(Math.max(first, 0), Math.max(first, 0) + 4).join(" ")} … (${ids.length} tokens)`;
}

/**
 * Hold an answer against what it must be: keys, numbers, and, where it is decided, labels and places. Returns the largest
 * deviation of a number as a part of the allowed one, infinite where anything else differs, and what differs.
 */
function compared(found: unknown, expected: unknown, allowed: Allowed, where = ""): Compared {
  if (typeof expected === "number" && typeof found === "number" && where !== "start" && where !== "end") {
    const difference = Math.abs(found - expected);
    const worst = Number.isNaN(difference) ? Infinity : difference > 0 ? difference / allowed.absolute : 0;
    return { worst, fault: worst <= 1 ? null : `\`${where}\` found ${found}, expected ${expected}, allowed ${allowed.absolute}` };
  }
  if (typeof expected !== "object" || expected === null || typeof found !== "object" || found === null || where === "labels") {
    const [own, wanted] = [JSON.stringify(found), JSON.stringify(expected)];
    return !allowed.decided || own === wanted ? FINE : { worst: Infinity, fault: `\`${where}\` found ${own}, expected ${wanted}` };
  }
  const [own, wanted] = [Object.keys(found).sort(), Object.keys(expected).sort()];
  if (String(own) !== String(wanted)) {
    return { worst: Infinity, fault: `\`${where || "answer"}\` has ${own.join(", ")}, expected ${wanted.join(", ")}` };
  }
  const [left, right] = [found, expected] as Record<string, unknown>[];
  const each = wanted.map((key) => compared(left![key], right![key], allowed, where ? `${where}.${key}` : key));
  return { worst: Math.max(0, ...each.map(({ worst }) => worst)), fault: each.find(({ fault }) => fault)?.fault ?? null };
}
