// Runs llama.cpp by node-llama-cpp: node llama_cpp.mjs MODEL.gguf TOKENS LORA.gguf…
// Writes a JSON list: for the model alone, then with each adapter, the probabilities of all words after each token.
import { getLlama } from "node-llama-cpp";

const [path, tokens, ...adapters] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath: path });
const found = [];
for (const lora of [undefined, ...adapters]) {
  const context = await model.createContext({ contextSize: 32, ...(lora && { lora }) });
  const inputs = tokens.split(",").map((token) => [Number(token), { generateNext: { probabilities: true } }]);
  const outputs = await context.getSequence().controlledEvaluate(inputs);
  found.push(outputs.map(({ next }) => [...next.probabilities].sort(([one], [other]) => one - other).map(([, value]) => value)));
  await context.dispose();
}
process.stdout.write(JSON.stringify(found));
