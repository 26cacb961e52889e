/** Compares answers with those of a reference (docs/reference/format.md, "Golden texts" and "Golden batches"). */
import type { Context, Keys } from "./answers.js";
import type { TextAnswer } from "./text.js";

export interface Allowed {
  /** The allowed error of each number. */
  absolute: number;
  /** Whether rounding cannot change a label or a place. */
  decided: boolean;
}

export interface Compared {
  /** The largest error as a part of the allowed one; infinite if anything but a number differs. */
  worst: number;
  /** The first difference. */
  fault: string | null;
}

/** The tokens that may be the answer to a question: the first one, and the one after the last; null for other tasks. */
export type ContextRange = [first: number, end: number] | null;

const EQUAL: Compared = { worst: 0, fault: null };

/** Places of tokens, which have no allowed error. */
const PLACES = ["first_token", "last_token"];

/** The context of a row of so many tokens, as a part of the row. */
export function contextOf(range: ContextRange, tokens: number): { context?: Context } {
  return range ? { context: Array.from({ length: tokens }, (_, at) => (at >= range[0] && at < range[1] ? 1 : 0)) } : {};
}

/** Compare an answer with the keys that it must have: numbers, and, if it is decided, labels and places. */
export function compared({ adapter, task, ...found }: TextAnswer, expected: Keys, allowed: Allowed): Compared {
  return comparedValues(found, expected, allowed, "");
}

function comparedValues(found: unknown, expected: unknown, allowed: Allowed, where: string): Compared {
  if (typeof expected === "number" && typeof found === "number" && !PLACES.includes(where)) {
    const difference = Math.abs(found - expected);
    const worst = Number.isNaN(difference) ? Infinity : difference > 0 ? difference / allowed.absolute : 0;
    return { worst, fault: worst <= 1 ? null : `\`${where}\` found ${found}, expected ${expected}, allowed ${allowed.absolute}` };
  }
  if (typeof expected !== "object" || expected === null || typeof found !== "object" || found === null || where === "labels") {
    const [own, wanted] = [JSON.stringify(found), JSON.stringify(expected)];
    return !allowed.decided || own === wanted ? EQUAL : { worst: Infinity, fault: `\`${where}\` found ${own}, expected ${wanted}` };
  }
  const [own, wanted] = [Object.keys(found).sort(), Object.keys(expected).sort()];
  if (String(own) !== String(wanted)) {
    const keys = Array.isArray(expected) ? [`${own.length} values`, `${wanted.length}`] : [own.join(", "), wanted.join(", ")];
    return { worst: Infinity, fault: `\`${where || "answer"}\` has ${keys[0]}, expected ${keys[1]}` };
  }
  const [left, right] = [found, expected] as Record<string, unknown>[];
  const each = wanted.map((key) => comparedValues(left![key], right![key], allowed, where ? `${where}.${key}` : key));
  return each.reduce((all, one) => ({ worst: Math.max(all.worst, one.worst), fault: all.fault ?? one.fault }), EQUAL);
}
