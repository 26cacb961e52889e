/**
 * node again.mjs PROGRAM: run PROGRAM once for each line on stdin, a list of arguments as JSON; what it imports is loaded
 * once. Prints for each what it said and its exit code, as JSON.
 */
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [node, , program] = process.argv;
const answer = process.stdout.write.bind(process.stdout);
let calls = 0;

for await (const line of createInterface({ input: process.stdin })) {
  const said = { stdout: "", stderr: "" };
  for (const name of Object.keys(said)) process[name].write = (text) => Boolean((said[name] += text));
  process.argv = [node, program, ...JSON.parse(line)];
  process.exitCode = 0;
  try {
    await import(`${pathToFileURL(program)}?${calls++}`); // with another address it is another module
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  }
  const code = process.exitCode;
  process.emit("exit", code);
  for (const name of ["exit", "SIGINT", "SIGTERM"]) process.removeAllListeners(name);
  process.exitCode = 0;
  answer(`${JSON.stringify({ ...said, code })}\n`);
}
