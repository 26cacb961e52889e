/** node serve.mjs BUNDLE [PORT]: the page at /, the bundle at /bundle/, to this machine alone. */
import { createReadStream } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";

const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };

const [bundle, port = "8080"] = process.argv.slice(2);
if (!bundle) {
  console.error("usage: node serve.mjs BUNDLE [PORT]");
  process.exit(2);
}
const folders = { "/bundle/": await realpath(bundle), "/": await realpath(fileURLToPath(new URL("dist", import.meta.url))) };

async function fileOf(url) {
  const path = decodeURIComponent(new URL(url, "http://localhost").pathname);
  const [prefix, folder] = Object.entries(folders).find(([start]) => path.startsWith(start));
  const file = await realpath(join(folder, path.slice(prefix.length) || "index.html"));
  if (!file.startsWith(folder + sep) || !(await stat(file)).isFile()) throw new Error("outside");
  return file;
}

const server = createServer(async (request, response) => {
  const file = await fileOf(request.url ?? "/").catch(() => null);
  if (file === null) return response.writeHead(404).end("not found");
  response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream", "cache-control": "no-cache" });
  await pipeline(createReadStream(file), response).catch(() => response.destroy()); // the reader went away
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
