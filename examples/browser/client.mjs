/**
 * node client.mjs verify BUNDLE [--json]
 * node client.mjs run BUNDLE …: the command line of `examples/node`, with a page in Chromium that computes.
 *
 * SCREENSHOT names an image of the page to write; PROVIDER is `wasm` or `webgpu`. Exit code 0: passed. 1: something failed, described on stderr.
 * 2: the command line is wrong.
 */
import { readFile } from "node:fs/promises";

import { withPage } from "./chromium.mjs";
import { Usage, parse, usage } from "./dist/commandLine.js";

async function verify(page, { json }) {
  await page.click("#check");
  await page.waitForSelector("[data-finding], #result > p.error");
  const findings = await page.$$eval("[data-finding]", (rows) => rows.map((row) => JSON.parse(row.dataset.finding)));
  console.log(json ? JSON.stringify(findings, null, 2) : await page.$eval("#result", (node) => node.innerText));
  const error = await page.$("#result > p.error");
  if (error) throw new Error(await error.evaluate((node) => node.textContent));
  if (!findings.length) throw new Error("has no graph that a browser can run");
}

async function run(page, command) {
  for (const [name, path] of command.load) await load(page, name, await readFile(path));
  const { inputs: file, texts, adapters, strengths, weights, contexts } = command;
  const asked = file === undefined ? { texts } : { inputs: JSON.parse(await readFile(file, "utf-8")) };
  const request = { ...asked, adapters, strengths, weights, contexts };
  console.log(JSON.stringify(await page.evaluate((asked) => window.bundle.run(asked), request), null, 2));
}

function load(page, name, bytes) {
  const work = (name, text) => window.bundle.load(name, Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)));
  return page.evaluate(work, name, bytes.toString("base64"));
}

try {
  const command = parse(process.argv.slice(2));
  await withPage(command.bundle, async (page) => {
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
    return command.name === "run" ? run(page, command) : verify(page, command);
  });
} catch (error) {
  console.error(`error: ${error.message.split("\n")[0]}`); // of errors in the page, their stack comes after
  if (error instanceof Usage) console.error(usage("client.mjs"));
  process.exitCode = error instanceof Usage ? 2 : 1;
}
