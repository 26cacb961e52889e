/** Put the page, its script and ONNX Runtime's WebAssembly into `dist`. */
import { copyFile, mkdir, rm } from "node:fs/promises";

import { build } from "esbuild";

const RUNTIME = "node_modules/onnxruntime-web/dist";

await rm("dist", { recursive: true, force: true });
await mkdir("dist");
await build({
  entryPoints: ["src/page.ts"],
  bundle: true,
  format: "esm",
  minify: true,
  splitting: true, // one of the builds of ONNX Runtime is loaded
  outdir: "dist",
  // the sources in ../node have no packages of their own here
  alias: {
    "onnxruntime-common": "./node_modules/onnxruntime-common",
    "@huggingface/tokenizers": "./node_modules/@huggingface/tokenizers",
  },
});
await build({ entryPoints: ["../node/src/commandLine.ts"], bundle: true, format: "esm", platform: "node", outfile: "dist/commandLine.js" });
await copyFile("index.html", "dist/index.html");
for (const build of ["", ".asyncify"]) { // for WebAssembly, for WebGPU
  for (const ending of ["wasm", "mjs"]) await copyFile(`${RUNTIME}/ort-wasm-simd-threaded${build}.${ending}`, `dist/ort-wasm-simd-threaded${build}.${ending}`);
}
