/**
 * node page.mjs EXAMPLE ROOT NAME ROWS DEVICE…: answer ROWS, a file of JSON, on each device in a page, with `answer.mjs` of ROOT/NAME
 * and the packages in ROOT. Chromium is driven by `examples/browser` in EXAMPLE. Prints the answers by device.
 */
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";

const [, , example, root, name, rows, ...devices] = process.argv;
const { opened } = await import(`${example}/chromium.mjs`);
const packages = "/node_modules";
const imports = { "@huggingface/transformers": `${packages}/@huggingface/transformers/dist/transformers.min.js` };
const page = `<!doctype html><link rel="icon" href="data:," /><script type="importmap">${JSON.stringify({ imports })}</script>`;
const types = { ".mjs": "text/javascript", ".js": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };

const server = createServer(async (request, response) => {
  const path = new URL(request.url, "http://localhost").pathname;
  if (path === "/") return response.writeHead(200, { "content-type": "text/html" }).end(page);
  const bytes = await readFile(join(root, path)).catch(() => null);
  if (bytes === null) return response.writeHead(404).end();
  response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" }).end(bytes);
});

async function answers(device, name, packages, rows) {
  const { env } = await import("@huggingface/transformers");
  Object.assign(env.backends.onnx.wasm, { wasmPaths: `${packages}/onnxruntime-web/dist/`, numThreads: 1 });
  const { open } = await import(`/${name}/answer.mjs`);
  return (await open(device))(rows);
}

await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const browser = await opened();
try {
  browser.page.setDefaultTimeout(240_000);
  await browser.page.goto(`http://127.0.0.1:${server.address().port}/`);
  const found = {};
  for (const device of devices) {
    found[device] = await browser.page.evaluate(answers, device, name, packages, JSON.parse(await readFile(rows, "utf-8")));
  }
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
  server.closeAllConnections();
  server.close();
}
