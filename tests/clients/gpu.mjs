/**
 * node gpu.mjs EXAMPLE BUNDLE ROWS: the page of `examples/browser`, in EXAMPLE, with `provider=webgpu`, three times: as it is, in a
 * browser without WebGPU, and with a GPU whose results are 0. Prints for each the provider, the note that is shown and
 * the answers to ROWS, JSON.
 */
const [, , example, bundle, rows] = process.argv;
const { opened } = await import(`${example}/chromium.mjs`);
const { listen } = await import(`${example}/serve.mjs`);

const FAULTS = {
  none: () => {},
  missing: () => Object.defineProperty(navigator, "gpu", { value: undefined }),
  zero: () => {
    const read = GPUBuffer.prototype.getMappedRange;
    GPUBuffer.prototype.getMappedRange = function (...range) {
      const bytes = read.apply(this, range);
      if (this.usage & GPUBufferUsage.MAP_READ) new Uint8Array(bytes).fill(0);
      return bytes;
    };
  },
};

const { server, address } = await listen(bundle, 0);
const { page, close } = await opened();
const found = {};
try {
  page.setDefaultTimeout(240_000);
  for (const [name, fault] of Object.entries(FAULTS)) {
    const { identifier } = await page.evaluateOnNewDocument(fault);
    await page.goto(`${address}?provider=webgpu`);
    await page.waitForSelector("[data-ready], [data-failed]");
    found[name] = await page.evaluate(async (rows) => {
      const [state, note] = ["state", "note"].map((id) => document.getElementById(id).innerText);
      return { state, note, provider: window.bundle?.provider, answers: await window.bundle?.run(rows) };
    }, JSON.parse(rows));
    await page.removeScriptToEvaluateOnNewDocument(identifier);
  }
} finally {
  await close();
  server.closeAllConnections();
  server.close();
}
console.log(JSON.stringify(found));
