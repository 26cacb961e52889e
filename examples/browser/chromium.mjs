/**
 * The page in Chromium: served, opened, closed. PROVIDER is `wasm` (default) or `webgpu`. CHROMIUM names the browser's program, or the address of one that runs,
 * `ws://…`: it is left running, with the tab of the first call, which every later call takes to its own page.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import puppeteer from "puppeteer-core";

import { listen } from "./serve.mjs";

const PROVIDER = process.env.PROVIDER ?? "wasm";
const FLAGS = [
  "--no-sandbox", // containers have none
  ...(PROVIDER === "webgpu" ? ["--enable-unsafe-webgpu", "--enable-features=Vulkan,WebGPU"] : ["--disable-gpu"]),
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const PATIENCE = 120_000;

/** A page without content, and what closes its browser. */
export async function opened() {
  const where = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (where.startsWith("ws:")) {
    const browser = await puppeteer.connect({ browserWSEndpoint: where });
    const [page] = await browser.pages(); // a new one would start processes, which takes longer than most calls
    return { page: page ?? (await browser.newPage()), close: () => browser.disconnect() };
  }
  const profile = await mkdtemp(join(tmpdir(), "chromium-"));
  const browser = await puppeteer.launch({ executablePath: where, headless: true, userDataDir: profile, args: FLAGS });
  return { page: await browser.newPage(), close: () => browser.close().then(() => rm(profile, { recursive: true, force: true })) };
}

/** Open the page on a bundle, and give it to `work` when it is ready. Throws what it shows as an error. */
export async function withPage(bundle, work) {
  const { server, address } = await listen(bundle, 0);
  let browser;
  try {
    browser = await opened();
    const { page } = browser;
    page.setDefaultTimeout(PATIENCE);
    await page.goto(`${address}?provider=${encodeURIComponent(PROVIDER)}`);
    await page.waitForSelector("[data-ready], [data-failed]");
    const error = await page.$("[data-failed] p.error");
    if (error) throw new Error(await error.evaluate((node) => node.textContent));
    const note = await page.evaluate(() => window.bundle.note);
    if (note) console.error(`note: ${note}`);
    return await work(page);
  } finally {
    await browser?.close();
    server.closeAllConnections();
    server.close();
  }
}
