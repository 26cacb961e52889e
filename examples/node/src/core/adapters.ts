/** The adapters that the graph `inputs` can be fed: those of the bundle, and others that were built for it. */
import type { Tensor } from "onnxruntime-common";

import { parseAdapterFile } from "./adapterFile.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { MixRecord } from "./manifest.js";
import {
  type Head,
  NO_HEAD,
  type StrengthParameters,
  checkAdapter,
  checkModelVersion,
  checkStrength,
  headOf,
  neutralTensors,
  scaledTensors,
  weightTensors,
} from "./request.js";
import type { Task } from "./task.js";

/** The weights of the members of a fusion, by their names. */
export type Weights = Record<string, number>;

interface Loaded {
  tensors: Map<string, Tensor>;
  head: Head;
  mix: MixRecord | null;
}

export class Adapters {
  private readonly loaded = new Map<Choice, Loaded>();
  private parameters: Promise<StrengthParameters> | null = null;

  private constructor(private readonly bundle: Bundle) {}

  /** Read and check all adapters of the bundle. */
  static async open(bundle: Bundle): Promise<Adapters> {
    const made = new Adapters(bundle);
    made.loaded.set(null, { tensors: neutralTensors(bundle.manifest), head: NO_HEAD, mix: null });
    for (const record of bundle.manifest.adapters) {
      const tensors = made.parse(await bundle.read(record.onnx_adapter), record.onnx_adapter);
      headOf(tensors, bundle.manifest, record, record.onnx_adapter);
      made.loaded.set(record.name, { tensors, head: record, mix: record.mix ?? null });
    }
    return made;
  }

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle. */
  load(name: string, bytes: Uint8Array, task: Task | null = null): void {
    const where = `adapter \`${name}\``;
    if (this.loaded.has(name)) throw new Fault({ what: "is loaded already", where, fix: "load it under another name" });
    const tensors = this.parse(bytes, where);
    this.loaded.set(name, { tensors, head: headOf(tensors, this.bundle.manifest, { output: null, task }, where), mix: null });
  }

  headOf(choice: Choice): Head {
    return this.adapter(choice).head;
  }

  /**
   * A tensor for every slot.
   *
   * @param strength the factor of the updates that the adapter adds; heads are not scaled.
   * @param weights of a fusion, in place of its own: once for all rows of a call, or once for each.
   */
  async tensors(choice: Choice, strength = 1, weights: Weights[] = []): Promise<Map<string, Tensor>> {
    const [{ tensors, mix }, where] = [this.adapter(choice), `adapter \`${choice ?? "base"}\``];
    checkStrength(strength);
    if (weights.length) return new Map([...tensors, ...weightTensors(mix, weights, where)]);
    if (choice === null || strength === 1) return tensors;
    const parameters = await (this.parameters ??= this.bundle.strengthParameters());
    return new Map([...tensors, ...scaledTensors(tensors, this.bundle.manifest, parameters, strength, where)]);
  }

  private parse(bytes: Uint8Array, where: string): Map<string, Tensor> {
    const { tensors, modelVersion } = parseAdapterFile(bytes, where);
    checkAdapter(tensors, this.bundle.manifest, where);
    checkModelVersion(modelVersion, this.bundle.manifest, where);
    return tensors;
  }

  private adapter(choice: Choice): Loaded {
    const found = this.loaded.get(choice);
    if (found) return found;
    const names = [...this.loaded.keys()].filter((name) => name !== null).map((name) => `\`${name}\``);
    const expected = names.length ? `one of ${names.join(", ")}` : "none";
    throw new Fault({ what: "is not loaded", where: `adapter \`${choice}\``, expected, fix: "load it first" });
  }
}
