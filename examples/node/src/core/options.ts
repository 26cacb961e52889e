/** Options for the rows of a request, each given once for all of them or once for each. */
import type { Weights } from "./adapters.js";
import type { Context } from "./answers.js";
import type { Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Arrays, Row } from "./service.js";
import type { Asked } from "./text.js";

export interface Options {
  adapters?: Choice[];
  strengths?: number[];
  weights?: Weights[];
  contexts?: Context[];
}

/** Rows with the options of each. Throws a Fault if there are neither one of an option nor as many as rows. */
export function rowsOf({ adapters, strengths, weights, contexts }: Options, asked: (Asked | Arrays)[]): Row[] {
  const each = <Value>(word: string, values: Value[] = []): (Value | undefined)[] => {
    if (values.length <= 1) return asked.map(() => values[0]);
    if (values.length === asked.length) return values;
    throw new Fault({ what: `not one ${word} for each row`, found: `${values.length}`, expected: `${asked.length}` });
  };
  const [adapter, strength] = [each("adapter", adapters), each("strength", strengths)];
  const [weighting, context] = [each("set of weights", weights), each("context", contexts)];
  return asked.map((row, at) => {
    const own = { adapter: adapter[at], strength: strength[at], weights: weighting[at], context: context[at] };
    return { ...row, ...Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined)) };
  });
}
