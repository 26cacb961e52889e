/**
 * node live.mjs CORE BUNDLE ARRAYS.json: run the adapter `tone` alone and in a mixed batch, with the built files of
 * `examples/node` in CORE, before and after every file of BUNDLE is truncated and written over; prints both answers.
 */
import { readFileSync, readdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [dist, bundle, arrays] = process.argv.slice(2);
const [{ Folder }, { Bundle }, { Service }, { inputRows }] = await Promise.all(
  ["folder.js", "core/bundle.js", "core/service.js", "core/arrays.js"].map((path) => import(`${dist}/${path}`)),
);
const opened = await Bundle.open(new Folder(bundle));
const rows = inputRows(JSON.parse(readFileSync(arrays)), opened.manifest);
const service = new Service(opened);
const ask = async (adapters) => service.answer(rows.map((inputs, at) => ({ inputs, adapter: adapters[at] })));
const askBoth = async () => [await ask(["tone", "tone", "tone"]), await ask(["topic", null, "tone"])];

const before = await askBoth();
const files = readdirSync(bundle, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
for (const path of files.map((entry) => join(entry.parentPath, entry.name))) {
  truncateSync(path);
  writeFileSync(path, Buffer.alloc(1 << 20, 1));
}
console.log(JSON.stringify([before, await askBoth()]));
