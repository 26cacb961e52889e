/**
 * node kept.mjs DIST BUNDLE ARRAYS.json: run a row of ARRAYS with the built files of `examples/node` in DIST through `tone`,
 * `topic` and `tone`, then all rows through `tone`, the base and `topic`; once with memory for what lies below the adapters,
 * once with a byte, once with none. Prints for each the answers, and what became of the rows.
 */
import { readFileSync } from "node:fs";

const [dist, bundle, arrays] = process.argv.slice(2);
const { inputRows, openBundle } = await import(`${dist}/index.js`);
const found = [];
for (const prefixBytes of [4000, 1, 0]) {
  const service = await openBundle(bundle, { prefixBytes });
  const rows = inputRows(JSON.parse(readFileSync(arrays)), service.bundle.manifest);
  const ask = (adapters) => service.answer(adapters.map((adapter, at) => ({ inputs: rows[at], adapter })));
  const answers = [];
  for (const adapters of [["tone"], ["topic"], ["tone"], ["tone", null, "topic"]]) answers.push(await ask(adapters));
  found.push({ answers, prefixes: await service.prefixes() });
}
console.log(JSON.stringify(found));
