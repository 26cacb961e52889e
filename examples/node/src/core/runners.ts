/**
 * The ways to run a bundle that work in every binding of ONNX Runtime.
 *
 * Never the flavour `slots` here: onnxruntime-node ignores tensors for overridable initializers without a word and runs
 * the defaults, and onnxruntime-web throws.
 */
import { type InferenceSession, Tensor } from "onnxruntime-common";

import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { parseSafetensors } from "./safetensors.js";
import { type Inputs, checkAdapter, checkInputs, neutralTensors } from "./request.js";

export type Outputs = InferenceSession.OnnxValueMapType;

/** One adapter for the whole batch: its tensors are inputs of the call. Any adapter of the right shapes can be loaded. */
export class FedAdapters {
  private readonly loaded = new Map<Choice, Map<string, Tensor>>();

  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
  ) {}

  /** Open the graph, with all adapters of the bundle loaded. */
  static async open(bundle: Bundle): Promise<FedAdapters> {
    const made = new FedAdapters(bundle, await bundle.open("inputs"));
    made.loaded.set(null, neutralTensors(bundle.manifest));
    for (const record of bundle.manifest.adapters) made.load(record.name, await bundle.read(record.safetensors));
    return made;
  }

  /** Load an adapter from the bytes of a safetensors file with a tensor for every slot. */
  load(name: string, bytes: Uint8Array): void {
    const where = `adapter \`${name}\``;
    if (this.loaded.has(name)) throw new Fault({ what: "is loaded already", where, fix: "unload it first" });
    const tensors = parseSafetensors(bytes, where);
    checkAdapter(tensors, this.bundle.manifest, where);
    this.loaded.set(name, tensors);
  }

  unload(name: string): void {
    if (!this.loaded.delete(name)) throw new Fault({ what: "is not loaded", where: `adapter \`${name}\`` });
  }

  async run(inputs: Inputs, choice: Choice): Promise<Outputs> {
    checkInputs(inputs, this.bundle.manifest);
    const tensors = this.loaded.get(choice);
    if (!tensors) throw new Fault({ what: "is not loaded", where: `adapter \`${choice}\``, fix: "load it first" });
    return this.session.run({ ...inputs, ...Object.fromEntries(tensors) });
  }
}

/** An adapter for every row of the batch: the bank holds those that the bundle was built with. */
export class Bank {
  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
  ) {}

  static async open(bundle: Bundle): Promise<Bank> {
    if (!bundle.manifest.bank) throw new Fault({ what: "the manifest describes no bank" });
    return new Bank(bundle, await bundle.open("bank"));
  }

  async run(inputs: Inputs, choices: Choice[]): Promise<Outputs> {
    checkInputs(inputs, this.bundle.manifest);
    const batch = Object.values(inputs)[0]!.dims[0]!;
    if (choices.length !== batch) {
      throw new Fault({ what: "not one adapter for each row", found: `${choices.length}`, expected: `${batch}` });
    }
    const ids = BigInt64Array.from(choices, (choice) => BigInt(this.row(choice)));
    return this.session.run({ ...inputs, [this.bundle.manifest.bank!.ids]: new Tensor("int64", ids, [batch]) });
  }

  /** Never a number from outside: an id of −1 would take the last adapter without a word. */
  private row(choice: Choice): number {
    const at = this.bundle.manifest.bank!.rows.indexOf(choice);
    if (at >= 0) return at;
    if (choice !== null) this.bundle.adapter(choice); // says which there are
    throw new Fault({ what: "is not in the bank", where: `adapter \`${choice}\`` });
  }
}

/** A graph in which one adapter is constant. */
export class Baked {
  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
  ) {}

  static async open(bundle: Bundle, adapter: string): Promise<Baked> {
    return new Baked(bundle, await bundle.openBaked(adapter));
  }

  async run(inputs: Inputs): Promise<Outputs> {
    checkInputs(inputs, this.bundle.manifest);
    return this.session.run(inputs);
  }
}
