/** Golden cases: inputs and expected outputs in a safetensors file of a bundle. Some of both are abridged (`sketch.ts`). */
import type { Tensor } from "onnxruntime-common";

import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type Manifest, sketchSize } from "./manifest.js";
import type { Inputs } from "./request.js";
import type { Outputs } from "./runners.js";
import { filled, sketch } from "./sketch.js";

/** A graph, and a call of it in which all rows run through one adapter. */
export interface Graph {
  name: "inputs" | "bank" | "fanout" | "baked";
  /** What it can run. */
  choices: Choice[];
  run(inputs: Inputs, choice: Choice): Promise<Outputs>;
}

export class GoldenCases<Record extends { path: string; cases: string[] }> {
  private constructor(
    readonly record: Record,
    private readonly tensors: Map<string, Tensor>,
    private readonly manifest: Manifest,
  ) {}

  static async of<Record extends { path: string; cases: string[] }>(bundle: Bundle, record: Record): Promise<GoldenCases<Record>> {
    return new GoldenCases(record, await bundle.tensors(record.path), bundle.manifest);
  }

  inputs(name: string): Inputs {
    const tensors = this.manifest.inputs.map((input) => {
      const key = `${name}.fill.${input.name}`;
      const fill = this.tensors.get(key);
      return [input.name, fill ? filled(fill, input, `${this.record.path}, \`${key}\``) : this.tensor(`${name}.input.${input.name}`)];
    });
    return Object.fromEntries(tensors) as Inputs;
  }

  /** An expected output, or its sketch. */
  output(name: string, output: string): Tensor {
    const key = `${name}.output.${output}`;
    const [expected, record] = [this.tensor(key), this.manifest.sketches[output]];
    const { type, dims } = expected;
    if (!record || (type === "float32" && dims.length === record.axes + 1 && dims.at(-1) === sketchSize(record))) return expected;
    const [found, wanted] = [`${type} [${dims}]`, `float32 with ${sketchSize(record)} numbers behind ${record.axes} axes`];
    const where = `${this.record.path}, \`${key}\``;
    throw new Fault({ what: "is not the sketch that the manifest describes", where, found, expected: wanted });
  }

  /** The outputs of a graph in the form in which the file has them: sketches of some. */
  comparable(outputs: Outputs): Outputs {
    const sketched = Object.entries(this.manifest.sketches).filter(([name]) => outputs[name]);
    return { ...outputs, ...Object.fromEntries(sketched.map(([name, record]) => [name, sketch(outputs[name]!, record, name)])) };
  }

  /** The weights of a part; null if the case does not count for it. */
  weights(name: string, part: number): Tensor | null {
    return this.tensors.get(`${name}.part.${part}`) ?? null;
  }

  private tensor(name: string): Tensor {
    const tensor = this.tensors.get(name);
    if (!tensor) throw new Fault({ what: `has no tensor \`${name}\``, where: this.record.path });
    return tensor;
  }
}

/** A float32 output without the classes behind those of the adapter; null if its other axes are not the expected ones. */
export function ownNumbers(found: Tensor | undefined, expected: Tensor): Float32Array | null {
  if (found?.type !== "float32" || found.dims.length !== expected.dims.length || !found.dims.length) return null;
  const [wide, own] = [found.dims.at(-1)!, expected.dims.at(-1)!];
  if (String(found.dims.slice(0, -1)) !== String(expected.dims.slice(0, -1)) || wide < own) return null;
  const numbers = found.data as Float32Array;
  if (wide === own) return numbers;
  const [lines, kept] = [expected.size / own, new Float32Array(expected.size)];
  for (let line = 0; line < lines; line++) kept.set(numbers.subarray(line * wide, line * wide + own), line * own);
  return kept;
}
