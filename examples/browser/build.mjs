/** Put the page, its script and ONNX Runtime's WebAssembly into `dist`. */
import { copyFile, mkdir } from "node:fs/promises";

import { build } from "esbuild";

const RUNTIME = "node_modules/onnxruntime-web/dist";

await mkdir("dist", { recursive: true });
await build({
  entryPoints: ["src/page.ts"],
  bundle: true,
  format: "esm",
  minify: true,
  outfile: "dist/page.js",
  // the sources in ../node have no packages of their own here
  alias: {
    "onnxruntime-common": "./node_modules/onnxruntime-common",
    "@huggingface/tokenizers": "./node_modules/@huggingface/tokenizers",
  },
});
await build({ entryPoints: ["../node/src/commandLine.ts"], bundle: true, format: "esm", platform: "node", outfile: "dist/commandLine.js" });
await copyFile("index.html", "dist/index.html");
for (const file of ["ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs"]) {
  await copyFile(`${RUNTIME}/${file}`, `dist/${file}`);
}
