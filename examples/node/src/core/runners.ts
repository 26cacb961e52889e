/**
 * The ways to run a bundle that work in every binding of ONNX Runtime.
 *
 * Never the flavour `slots` here: onnxruntime-node ignores tensors for overridable initializers without a word and runs
 * the defaults, and onnxruntime-web throws.
 */
import { type InferenceSession, Tensor } from "onnxruntime-common";

import { parseAdapterFile } from "./adapterFile.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { MixRecord } from "./manifest.js";
import {
  type Head,
  type Inputs,
  type StrengthParameters,
  checkAdapter,
  checkInputs,
  checkModelVersion,
  checkStrength,
  headOf,
  neutralTensors,
  scaledTensors,
  weightTensors,
} from "./request.js";
import { type PrefixCounts, PrefixCache, joined, keyOf, taken, takenRows } from "./rows.js";
import type { Task } from "./task.js";

export type Outputs = Record<string, Tensor>;

/** The outputs, and the head of the very adapter of each row. */
export interface Result {
  outputs: Outputs;
  heads: Head[];
}

/** What the members of a fusion weigh, by their names. */
export type Weights = Record<string, number>;

const NO_HEAD: Head = { output: null, task: null };

interface Chosen {
  tensors: Map<string, Tensor>;
  head: Head;
  mix: MixRecord | null;
}

/** One adapter for the whole batch: its tensors are inputs of the call. */
export class FedAdapters {
  private readonly loaded = new Map<Choice, Chosen>();
  private parameters: Promise<StrengthParameters> | null = null;

  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
  ) {}

  /** Open the graph, with all adapters of the bundle loaded. */
  static async open(bundle: Bundle): Promise<FedAdapters> {
    const made = new FedAdapters(bundle, await bundle.open("inputs"));
    made.loaded.set(null, { tensors: neutralTensors(bundle.manifest), head: NO_HEAD, mix: null });
    for (const record of bundle.manifest.adapters) {
      const tensors = made.parse(await bundle.read(record.onnx_adapter), record.onnx_adapter);
      headOf(tensors, bundle.manifest, record, record.onnx_adapter);
      made.loaded.set(record.name, { tensors, head: record, mix: record.mix ?? null });
    }
    return made;
  }

  get adapters(): string[] {
    return [...this.loaded.keys()].filter((name) => name !== null);
  }

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle. */
  load(name: string, bytes: Uint8Array, task: Task | null = null): void {
    const where = `adapter \`${name}\``;
    if (this.loaded.has(name)) throw new Fault({ what: "is loaded already", where, fix: "unload it first" });
    const tensors = this.parse(bytes, where);
    this.loaded.set(name, { tensors, head: headOf(tensors, this.bundle.manifest, { output: null, task }, where), mix: null });
  }

  private parse(bytes: Uint8Array, where: string): Map<string, Tensor> {
    const { tensors, modelVersion } = parseAdapterFile(bytes, where);
    checkAdapter(tensors, this.bundle.manifest, where);
    checkModelVersion(modelVersion, this.bundle.manifest, where);
    return tensors;
  }

  /** Forget an adapter; calls that run with it at this moment end well. */
  unload(name: string): void {
    if (!this.loaded.delete(name)) throw new Fault({ what: "is not loaded", where: `adapter \`${name}\`` });
  }

  headOf(choice: Choice): Head {
    return this.chosen(choice).head;
  }

  /**
   * @param weights of a fusion, in the place of its own: once for all rows, or once for each.
   * @param strength how many times what the adapter adds is added.
   */
  async run(inputs: Inputs, choice: Choice, weights: Weights[] = [], strength = 1): Promise<Result> {
    if (weights.length > 1) checkRows(inputs, this.bundle, weights.map(sorted));
    else checkInputs(inputs, this.bundle.manifest);
    const chosen = this.chosen(choice);
    const heads = Array<Head>(batchOf(inputs)).fill(chosen.head);
    const where = `adapter \`${choice ?? "base"}\``;
    const own = weights.length ? weightTensors(chosen.mix, weights, where) : await this.scaled(chosen, choice, strength, where);
    const feeds = { ...inputs, ...Object.fromEntries([...chosen.tensors, ...own]) };
    return { outputs: await run(this.session, feeds, outputsOf(this.bundle, heads)), heads };
  }

  private async scaled({ tensors }: Chosen, choice: Choice, strength: number, where: string): Promise<Map<string, Tensor>> {
    if (choice === null) return new Map();
    checkStrength(strength);
    if (strength === 1) return new Map();
    this.parameters ??= this.bundle.strengthParameters();
    return scaledTensors(tensors, this.bundle.manifest, await this.parameters, strength, where);
  }

  private chosen(choice: Choice): Chosen {
    const found = this.loaded.get(choice);
    if (found) return found;
    const expected = `one of ${this.adapters.map((name) => `\`${name}\``).join(", ")}`;
    throw new Fault({ what: "is not loaded", where: `adapter \`${choice}\``, expected, fix: "load it first" });
  }
}

/** An adapter for every row of the batch: the bank holds those that the bundle was built with. */
export class Bank {
  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
  ) {}

  static async open(bundle: Bundle): Promise<Bank> {
    return new Bank(bundle, await bundle.open("bank"));
  }

  headOf(choice: Choice): Head {
    return headOfRow(this.bundle, choice);
  }

  async run(inputs: Inputs, choices: Choice[]): Promise<Result> {
    checkRows(inputs, this.bundle, choices);
    const heads = choices.map((choice) => this.headOf(choice));
    const feeds = { ...inputs, [this.bundle.bank.ids]: integers(choices.map((choice) => rowOf(this.bundle, choice))) };
    return { outputs: await run(this.session, feeds, outputsOf(this.bundle, heads)), heads };
  }
}

/** Any number of adapters for each row of the inputs, which is computed once up to the first of them. */
export class Fanout {
  private constructor(
    private readonly bundle: Bundle,
    private readonly lower: InferenceSession,
    private readonly upper: InferenceSession,
    private readonly rows: PrefixCache | null,
  ) {}

  /**
   * @param prefixBytes in how many bytes what `below` gives for a row is kept, for calls with this very row, its padding and
   *     mask included. Throws a Fault if rows would be kept that influence each other.
   */
  static async open(bundle: Bundle, prefixBytes = 0): Promise<Fanout> {
    if (prefixBytes > 0 && !bundle.manifest.batch_invariant) {
      const found = "a graph in which rows of a batch influence each other";
      throw new Fault({ what: "texts cannot be kept up to the first adapter", found });
    }
    const rows = prefixBytes > 0 ? new PrefixCache(prefixBytes) : null;
    return new Fanout(bundle, await bundle.open("prefix"), await bundle.open("fanout"), rows);
  }

  headOf(choice: Choice): Head {
    return headOfRow(this.bundle, choice);
  }

  /** What became of the rows that could be kept. */
  get prefixes(): PrefixCounts | null {
    return this.rows?.counts ?? null;
  }

  /** What no adapter has a part in. It may be kept, for a call with these very inputs. */
  async below(inputs: Inputs): Promise<Outputs> {
    checkInputs(inputs, this.bundle.manifest);
    const { rows } = this;
    if (!rows) return run(this.lower, inputs);
    const keys = await Promise.all(Array.from({ length: batchOf(inputs) }, (_, row) => keyOf(inputs, row)));
    const found = new Map([...new Set(keys)].map((key) => [key, rows.find(key)]));
    const missing = [...found].flatMap(([key, values]) => (values ? [] : [keys.indexOf(key)]));
    const computed = missing.length ? await run(this.lower, takenRows(inputs, missing)) : {};
    const axes = this.axes();
    missing.forEach((row, at) => {
      const own = Object.fromEntries(axes.map(([name, axis]) => [name, taken(computed[name]!, [at], axis)]));
      found.set(keys[row]!, own);
      rows.keep(keys[row]!, own);
    });
    return Object.fromEntries(axes.map(([name, axis]) => [name, joined(keys.map((key) => found.get(key)![name]!), axis)]));
  }

  /** Each value that crosses, and which of its axes has the rows. */
  private axes(): [name: string, axis: number][] {
    const batch = this.bundle.manifest.inputs[0]!.axes[0]!;
    return this.bundle.fanout.values.map(({ name, axes }) => {
      const places = axes.flatMap((axis, at) => (axis === batch ? [at] : []));
      if (places.length !== 1) throw new Fault({ what: "a value of the fan-out without one axis of the texts", where: name });
      return [name, places[0]!];
    });
  }

  /** Each row through an adapter of its own. */
  async runRows(inputs: Inputs, choices: Choice[]): Promise<Result> {
    checkRows(inputs, this.bundle, choices);
    return this.run(inputs, [...choices.keys()], choices);
  }

  /**
   * @param rows for each row of the outputs the row of the inputs that it continues.
   * @param choices for each row of the outputs its adapter.
   * @param below what `below` gave for these inputs.
   */
  async run(inputs: Inputs, rows: number[], choices: Choice[], below?: Outputs): Promise<Result> {
    const [values, batch] = [below ?? (await this.below(inputs)), batchOf(inputs)];
    if (!rows.length || rows.length !== choices.length) {
      throw new Fault({ what: "not one adapter for each row", found: `${choices.length}`, expected: `${rows.length}` });
    }
    const wrong = rows.find((row) => !Number.isInteger(row) || row < 0 || row >= batch);
    if (wrong !== undefined) throw new Fault({ what: "no such row of the inputs", found: `${wrong}`, expected: `0 to ${batch - 1}` });
    checkMixed(this.bundle, choices);
    const heads = choices.map((choice) => headOfRow(this.bundle, choice));
    const ids = choices.map((choice) => rowOf(this.bundle, choice));
    const feeds = { ...inputs, ...values, [this.bundle.bank.ids]: integers(ids), [this.bundle.fanout.rows]: integers(rows) };
    return { outputs: await run(this.upper, feeds, outputsOf(this.bundle, heads)), heads };
  }
}

/** A graph in which one adapter is constant. */
export class Baked {
  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
    private readonly head: Head,
  ) {}

  static async open(bundle: Bundle, adapter: string): Promise<Baked> {
    return new Baked(bundle, await bundle.openBaked(adapter), bundle.adapter(adapter));
  }

  async run(inputs: Inputs): Promise<Result> {
    checkInputs(inputs, this.bundle.manifest);
    const heads = Array<Head>(batchOf(inputs)).fill(this.head);
    return { outputs: await run(this.session, inputs, outputsOf(this.bundle, heads)), heads };
  }
}

async function run(session: InferenceSession, feeds: Inputs, outputs = session.outputNames): Promise<Outputs> {
  try {
    return (await session.run(feeds, outputs)) as Outputs;
  } catch (error) {
    const fix = "check their lengths against what the base takes";
    throw new Fault({ what: "ONNX Runtime cannot compute these inputs", found: String(error), fix });
  }
}

/** The outputs of the base, and those of some heads; those of others mean nothing. */
function outputsOf(bundle: Bundle, heads: Head[]): string[] {
  const named = heads.map((head) => head.output).filter((output) => output !== null);
  return [...new Set([...Object.keys(bundle.manifest.golden.absolute), ...named])];
}

/** One text for what is equal. */
function sorted(weights: Weights): string {
  return JSON.stringify(Object.entries(weights).sort());
}

/** Never a number from outside: an id of −1 would take the last adapter without a word. */
function rowOf(bundle: Bundle, choice: Choice): number {
  const at = bundle.bank.rows.indexOf(choice);
  if (at >= 0) return at;
  if (choice !== null) bundle.adapter(choice); // says which there are
  throw new Fault({ what: "is not in the bank", where: `adapter \`${choice ?? "base"}\`` });
}

function headOfRow(bundle: Bundle, choice: Choice): Head {
  return choice === null ? NO_HEAD : bundle.adapter(choice);
}

function integers(numbers: number[]): Tensor {
  return new Tensor("int64", BigInt64Array.from(numbers, BigInt), [numbers.length]);
}

/** Different choices only where the rows of a batch do not change each other's results. */
function checkMixed(bundle: Bundle, rows: unknown[]): void {
  if (new Set(rows).size > 1 && !bundle.manifest.batch_invariant) {
    throw new Fault({ what: "the rows of a batch influence each other in this bundle", fix: "give one adapter for all rows" });
  }
}

/** One choice for each row. */
export function checkRows(inputs: Inputs, bundle: Bundle, rows: unknown[]): void {
  checkInputs(inputs, bundle.manifest);
  checkMixed(bundle, rows);
  const [found, expected] = [rows.length, batchOf(inputs)];
  if (found !== expected) throw new Fault({ what: "not one adapter for each row", found: `${found}`, expected: `${expected}` });
}

export function batchOf(inputs: Inputs): number {
  return Object.values(inputs)[0]!.dims[0]!;
}
