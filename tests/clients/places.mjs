/**
 * node places.mjs DIST CASES.json: read the texts of each case with its `tokenizer.json`, with the built files of `examples/node` in
 * DIST. Prints for each text the ids that the post-processor did not add, and their places and tokens: null if the client cannot locate them.
 */
import { readFileSync } from "node:fs";

const [dist, cases] = process.argv.slice(2);
const { Tokens } = await import(`${dist}/core/tokens.js`);
const found = {};
for (const [name, { tokenizer, texts }] of Object.entries(JSON.parse(readFileSync(cases)))) {
  const tokens = new Tokens(new TextEncoder().encode(tokenizer), name);
  found[name] = texts.map((text) => {
    let row;
    try {
      row = tokens.row([text], Infinity, "right");
    } catch (error) {
      return { error: error.message };
    }
    const ids = row.ids.filter((_, at) => row.places[at]);
    return { ids, places: tokens.characters(text) };
  });
}
console.log(JSON.stringify(found));
