/**
 * node kept.mjs DIST BUNDLE ARRAYS.json: run a row of ARRAYS with the built files of `examples/node` in DIST through `tone`,
 * `topic` and `tone`, then all rows through `tone`, the base and `topic`; once with memory for what lies below the adapters,
 * once with a byte, once with none. Prints for each the answers, and what became of the rows.
 */
import { readFileSync } from "node:fs";

const [dist, bundle, arrays] = process.argv.slice(2);
const { openBundle, parseInputs } = await import(`${dist}/index.js`);
const lists = Object.entries(JSON.parse(readFileSync(arrays)));
const found = [];
for (const prefixBytes of [4000, 1, 0]) {
  const service = await openBundle(bundle, { prefixBytes });
  const rows = (count) => parseInputs(Object.fromEntries(lists.map(([name, list]) => [name, list.slice(0, count)])), service.bundle.manifest);
  const answers = [];
  for (const adapter of ["tone", "topic", "tone"]) answers.push(await service.run(rows(1), { adapter }));
  answers.push(await service.run(rows(3), { adapters: ["tone", null, "topic"] }));
  found.push({ answers, prefixes: await service.prefixes() });
}
console.log(JSON.stringify(found));
