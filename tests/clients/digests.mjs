/**
 * node digests.mjs DIST BUNDLE: what ONNX Runtime gives here for the recorded cases of a bundle, in two of its graphs.
 *
 * Prints its version, and by graph the sha256 for each adapter; `` is the base.
 */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

const [dist, bundle] = process.argv.slice(2);
const { InferenceSession, Tensor, env } = createRequire(join(dist, "main.js"))("onnxruntime-node");
const { parseSafetensors } = await import(join(dist, "core", "safetensors.js"));
const manifest = JSON.parse(await readFile(join(bundle, "manifest.json"), "utf-8"));
const extra = { optimization: { disable_specified_optimizers: "SkipLayerNormFusion;BiasGeluFusion" } };

const tensorsOf = async (path) => parseSafetensors(await readFile(join(bundle, path)), path);

/** The tensors of the base for each slot. */
const neutral = manifest.slots.map(({ name, neutral: dims, neutral_value: value }) => {
  return [name, new Tensor("float32", new Float32Array(dims.reduce((size, each) => size * each, 1)).fill(value ?? 0), dims)];
});

async function digestsOf(graph) {
  const session = await InferenceSession.create(join(bundle, manifest.graphs[graph]), { extra, logSeverityLevel: 3 });
  const found = {};
  for (const { name, golden, safetensors } of [{ name: null, golden: manifest.golden }, ...manifest.adapters]) {
    const [vectors, hash] = [await tensorsOf(golden.path), createHash("sha256")];
    const slots = Object.fromEntries([...neutral, ...(safetensors ? await tensorsOf(safetensors) : [])]);
    for (const each of manifest.recorded.cases) {
      const inputs = Object.fromEntries(manifest.inputs.map((input) => [input.name, vectors.get(`${each}.input.${input.name}`)]));
      const rows = Object.values(inputs)[0].dims[0];
      const ids = new Tensor("int64", new BigInt64Array(rows).fill(BigInt(manifest.bank.rows.indexOf(name))), [rows]);
      const outputs = await session.run({ ...inputs, ...(graph === "bank" ? { [manifest.bank.ids]: ids } : slots) });
      for (const output of Object.keys(golden.absolute).sort()) {
        const [{ data, dims }, own] = [outputs[output], vectors.get(`${each}.output.${output}`).dims.at(-1)];
        for (let at = 0; at < data.length; at += dims.at(-1)) hash.update(new Uint8Array(data.slice(at, at + own).buffer));
      }
    }
    found[name ?? ""] = hash.digest("hex");
  }
  return found;
}

console.log(JSON.stringify({ version: env.versions.node, inputs: await digestsOf("inputs"), bank: await digestsOf("bank") }));
