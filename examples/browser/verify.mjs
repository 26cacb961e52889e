/**
 * node verify.mjs BUNDLE [SCREENSHOT.png]: serve the page, open it in Chromium, and let it hold the bundle against its
 * golden vectors. CHROMIUM names the browser's program. Exit code 0 if all hold, 1 if not.
 */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import puppeteer from "puppeteer-core";

const FLAGS = [
  "--no-sandbox", // containers have none
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const PATIENCE = 120_000;

/** The address of the page, once the server listens. */
function serve(bundle) {
  const server = spawn(process.execPath, [new URL("serve.mjs", import.meta.url).pathname, bundle, "0"]);
  return new Promise((resolve, reject) => {
    server.stdout.once("data", (text) => resolve({ server, address: String(text).trim() }));
    server.once("exit", () => reject(new Error(`cannot serve ${bundle}`)));
  });
}

async function verify(address, profile, screenshot) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await puppeteer.launch({ executablePath, headless: true, userDataDir: profile, args: FLAGS });
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE);
    await page.goto(address);
    await page.waitForSelector(".bar, .error");
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
    await failOnError(page);
    await page.click("#all");
    await page.waitForFunction("document.querySelectorAll('#result section').length > 1 || document.querySelector('#result .error')");
    await failOnError(page);
    await page.click("#check");
    await page.waitForSelector("[data-finding], #result .error");
    await failOnError(page, "p.error");
    return await page.$$eval("[data-finding]", (rows) => rows.map((row) => JSON.parse(row.dataset.finding)));
  } finally {
    await browser.close();
  }
}

async function failOnError(page, selector = ".error") {
  const error = await page.$(selector);
  if (error) throw new Error(await error.evaluate((node) => node.textContent));
}

const [bundle, screenshot] = process.argv.slice(2);
if (!bundle) {
  console.error("usage: node verify.mjs BUNDLE [SCREENSHOT.png]");
  process.exit(2);
}
const profile = await mkdtemp(join(tmpdir(), "chromium-"));
const { server, address } = await serve(bundle);
try {
  const findings = await verify(address, profile, screenshot);
  console.log(JSON.stringify(findings, null, 2));
  if (!findings.length || !findings.every(({ worst }) => worst <= 1)) throw new Error("the page does not compute what the reference computed");
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
} finally {
  server.kill();
  await rm(profile, { recursive: true, force: true });
}
