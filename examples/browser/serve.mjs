/**
 * node serve.mjs BUNDLE [PORT]: the page at /, the files of the bundle at /bundle/, to this machine alone. A file that the
 * bundle's manifest does not list is refused at the start: who gets the page cannot list the folder.
 */
import { createReadStream } from "node:fs";
import { readFile, readdir, realpath, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, isAbsolute, join, relative, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";

const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const MANIFEST = "manifest.json";
const UNLISTED = [MANIFEST, "model.sig", "check.json", "README.md"]; // the others are made from it: signature, report, model card

/** What goes wrong with a request, and the status that says so. */
class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function checkNothingElse(folder) {
  const text = await readFile(join(folder, MANIFEST), "utf-8").catch(() => "");
  let listed;
  try {
    listed = new Set([...UNLISTED, ...JSON.parse(text).files.map((file) => file.path)]);
  } catch {
    return; // the page says what is wrong with it
  }
  if ([...listed].some((path) => isAbsolute(path) || path.split("/").includes(".."))) return; // likewise
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const path = relative(folder, join(entry.parentPath, entry.name)).split(sep).join("/");
    const isHidden = path.split("/").some((part) => part.startsWith(".")); // systems put such files there
    if (entry.isDirectory() || isHidden || listed.has(path)) continue;
    throw new Error(`${join(folder, path)}: is not listed in the manifest. Take it out of the bundle.`);
  }
}

async function fileOf(url, folders) {
  const path = decodeURIComponent(new URL(url, "http://localhost").pathname);
  const [prefix, folder] = Object.entries(folders).find(([start]) => path.startsWith(start));
  const file = await realpath(join(folder, path.slice(prefix.length) || "index.html")).catch(() => null);
  if (file === null || !(await stat(file)).isFile()) throw new Refusal(404, "not found");
  if (!file.startsWith(folder + sep)) throw new Refusal(403, "a link to a file outside the folder");
  return file;
}

async function serve(request, response, folders) {
  try {
    const file = await fileOf(request.url ?? "/", folders);
    response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream", "cache-control": "no-cache" });
    await pipeline(createReadStream(file), response).catch(() => response.destroy()); // the reader went away
  } catch (error) {
    response.writeHead(error.status ?? 400, { "content-type": "text/plain; charset=utf-8" }).end(error.message);
  }
}

/** A server of the page and of a bundle, and its address; port 0 takes one that is free. */
export async function listen(bundle, port) {
  const page = await realpath(fileURLToPath(new URL("dist", import.meta.url)));
  const folders = { "/bundle/": await realpath(bundle), "/": page };
  await checkNothingElse(folders["/bundle/"]);
  const server = createServer((request, response) => serve(request, response, folders));
  await new Promise((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  return { server, address: `http://127.0.0.1:${server.address().port}/` };
}

async function main([bundle, port = "8080"]) {
  if (!bundle) {
    console.error("usage: node serve.mjs BUNDLE [PORT]");
    process.exit(2);
  }
  try {
    console.log((await listen(bundle, Number(port))).address);
  } catch (error) {
    console.error(`error: ${error.message}`);
    process.exit(1);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2));
