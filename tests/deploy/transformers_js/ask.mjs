/** node ask.mjs FOLDER ROWS: answer ROWS, JSON, with the `answer.mjs` of FOLDER; prints the answers, or an error on stderr. */
const [, , folder, rows] = process.argv;
const opened = (globalThis.opened ??= new Map()); // this program runs again and again in one process
try {
  if (!opened.has(folder)) opened.set(folder, await (await import(`${folder}/answer.mjs`)).open());
  console.log(JSON.stringify(await opened.get(folder)(JSON.parse(rows))));
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
