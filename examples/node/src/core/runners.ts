/**
 * The graphs of a bundle that every binding of ONNX Runtime can run, each called with the rows as they are: `sharing.ts` decides
 * which rows go into a call.
 *
 * Not the variant `slots`: onnxruntime-node ignores tensors for overridable initializers and runs the defaults, and
 * onnxruntime-web throws.
 */
import { type InferenceSession, Tensor } from "onnxruntime-common";

import { Adapters, type Weights } from "./adapters.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type Head, type Inputs, NO_HEAD, checkInputs } from "./request.js";
import { type PrefixCounts, PrefixCache, joined, keyOf, taken, takenRows } from "./rows.js";

export type Outputs = Record<string, Tensor>;

/** The outputs of a call, and the head of each row's adapter. */
export interface Result {
  outputs: Outputs;
  heads: Head[];
}

/** One adapter for the whole batch: its tensors are inputs of the call. */
export class FedAdapters {
  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
    private readonly adapters: Adapters,
  ) {}

  static async open(bundle: Bundle, adapters?: Adapters): Promise<FedAdapters> {
    return new FedAdapters(bundle, await bundle.open("inputs"), adapters ?? (await Adapters.open(bundle)));
  }

  /** `strength` and `weights` as in `Adapters.tensors`. */
  async run(inputs: Inputs, choice: Choice, strength = 1, weights: Weights[] = []): Promise<Result> {
    checkInputs(inputs, this.bundle.manifest);
    const heads = Array<Head>(batchOf(inputs)).fill(this.adapters.headOf(choice));
    const tensors = await this.adapters.tensors(choice, strength, weights);
    const feeds = { ...inputs, ...Object.fromEntries(tensors) };
    return { outputs: await run(this.session, feeds, outputsOf(this.bundle, heads)), heads };
  }
}

/** An adapter for each row of the batch, of those that the bundle was built with. */
export class Bank {
  private constructor(
    private readonly bundle: Bundle,
    private readonly session: InferenceSession,
  ) {}

  static async open(bundle: Bundle): Promise<Bank> {
    return new Bank(bundle, await bundle.open("bank"));
  }

  async run(inputs: Inputs, choices: Choice[]): Promise<Result> {
    checkRows(inputs, this.bundle, choices);
    const heads = choices.map((choice) => headOfRow(this.bundle, choice));
    const feeds = { ...inputs, [this.bundle.bank.ids]: integers(choices.map((choice) => rowOf(this.bundle, choice))) };
    return { outputs: await run(this.session, feeds, outputsOf(this.bundle, heads)), heads };
  }
}

/** Any number of adapters for each row, which is computed once up to the first site of an adapter. */
export class Fanout {
  private constructor(
    private readonly bundle: Bundle,
    private readonly lower: InferenceSession,
    private readonly upper: InferenceSession,
    private readonly rows: PrefixCache | null,
  ) {}

  /**
   * @param prefixBytes the size of a cache of what `below` gives for a row, by all of its inputs. Throws a Fault if the rows of a
   *     call influence each other.
   */
  static async open(bundle: Bundle, prefixBytes = 0): Promise<Fanout> {
    if (prefixBytes > 0 && !bundle.manifest.batch_invariant) {
      const found = "a graph in which rows of a batch influence each other";
      throw new Fault({ what: "rows cannot be kept up to the first adapter", found });
    }
    const rows = prefixBytes > 0 ? new PrefixCache(prefixBytes) : null;
    return new Fanout(bundle, await bundle.open("prefix"), await bundle.open("fanout"), rows);
  }

  /** The counters of the cache of rows. */
  get prefixes(): PrefixCounts | null {
    return this.rows?.counts ?? null;
  }

  /** The values below the first adapter. They may be kept for another call with the same inputs. */
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

  /** Each value between the two graphs, and its axis of the rows. */
  private axes(): [name: string, axis: number][] {
    const batch = this.bundle.manifest.inputs[0]!.axes[0]!;
    return this.bundle.fanout.values.map(({ name, axes }) => {
      const places = axes.flatMap((axis, at) => (axis === batch ? [at] : []));
      if (places.length !== 1) throw new Fault({ what: "a value of the fan-out without one axis of the texts", where: name });
      return [name, places[0]!];
    });
  }

  /** Run each row through its own adapter. */
  async runRows(inputs: Inputs, choices: Choice[]): Promise<Result> {
    checkRows(inputs, this.bundle, choices);
    return this.run(inputs, [...choices.keys()], choices);
  }

  /**
   * @param rows for each row of the outputs, the row of the inputs that it continues.
   * @param choices for each row of the outputs, its adapter.
   * @param below the result of `below` for these inputs.
   */
  async run(inputs: Inputs, rows: number[], choices: Choice[], below?: Outputs): Promise<Result> {
    const [values, batch] = [below ?? (await this.below(inputs)), batchOf(inputs)];
    if (!rows.length || rows.length !== choices.length) {
      throw new Fault({ what: "not one adapter for each row", found: `${choices.length}`, expected: `${rows.length}` });
    }
    const wrong = rows.find((row) => !Number.isInteger(row) || row < 0 || row >= batch);
    if (wrong !== undefined) throw new Fault({ what: "no such row of the inputs", found: `${wrong}`, expected: `0 to ${batch - 1}` });
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

/** The outputs of the base and of these heads; those of other heads mean nothing in this call. */
function outputsOf(bundle: Bundle, heads: Head[]): string[] {
  const named = heads.map((head) => head.output).filter((output) => output !== null);
  return [...new Set([...Object.keys(bundle.manifest.golden.absolute), ...named])];
}

/** The id of an adapter in the bank. Names are looked up here, because an id of −1 would select the last adapter. */
function rowOf(bundle: Bundle, choice: Choice): number {
  const at = bundle.bank.rows.indexOf(choice);
  if (at >= 0) return at;
  if (choice !== null) bundle.adapter(choice); // throws a Fault that lists the adapters
  throw new Fault({ what: "is not in the bank", where: `adapter \`${choice ?? "base"}\`` });
}

function headOfRow(bundle: Bundle, choice: Choice): Head {
  return choice === null ? NO_HEAD : bundle.adapter(choice);
}

function integers(numbers: number[]): Tensor {
  return new Tensor("int64", BigInt64Array.from(numbers, BigInt), [numbers.length]);
}

function checkRows(inputs: Inputs, bundle: Bundle, rows: Choice[]): void {
  checkInputs(inputs, bundle.manifest);
  const [found, expected] = [rows.length, batchOf(inputs)];
  if (found !== expected) throw new Fault({ what: "not one adapter for each row", found: `${found}`, expected: `${expected}` });
}

function batchOf(inputs: Inputs): number {
  return Object.values(inputs)[0]!.dims[0]!;
}
