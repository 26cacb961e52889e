/** The page in Chromium: served, opened, closed. CHROMIUM names the browser's program. */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

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

/** The server, and the address of the page, once it listens. */
function serve(bundle) {
  const server = spawn(process.execPath, [fileURLToPath(new URL("serve.mjs", import.meta.url)), bundle, "0"]);
  return new Promise((resolve, reject) => {
    server.stdout.once("data", (text) => resolve({ server, address: String(text).trim() }));
    server.once("exit", () => reject(new Error(`cannot serve ${bundle}`)));
  });
}

/** Open the page on a bundle, and give it to `work`; it shows its first answer then, or an error. */
export async function withPage(bundle, work) {
  const profile = await mkdtemp(join(tmpdir(), "chromium-"));
  const { server, address } = await serve(bundle);
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  let browser;
  try {
    browser = await puppeteer.launch({ executablePath, headless: true, userDataDir: profile, args: FLAGS });
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE);
    await page.goto(address);
    await page.waitForSelector("[data-answer], p.error");
    return await work(page);
  } finally {
    await browser?.close();
    server.kill();
    await rm(profile, { recursive: true, force: true });
  }
}

/** Throws what the page shows as an error, if it does. */
export async function failOnError(page) {
  const error = await page.$("p.error");
  if (error) throw new Error(await error.evaluate((node) => node.textContent));
}
