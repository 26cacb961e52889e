/** A bundle in use: the graph that a call needs is opened when the first such call comes. */
import { type Answer, answers } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type Inputs, checkInputs } from "./request.js";
import { type PrefixCounts, takenRows } from "./rows.js";
import { Bank, Fanout, FedAdapters, type Result, type Weights, batchOf, checkRows } from "./runners.js";
import type { Task } from "./task.js";
import { type Asked, type ReadText, type TextAnswer, TextReader, contextOf } from "./text.js";
import type { Row } from "./tokens.js";

/** Who runs the rows of a batch: an adapter or none for all of them, or one for each. */
export interface Call {
  adapter?: Choice;
  adapters?: Choice[];
  /** With an `adapter` that is a weighted fusion: what its members weigh, once for all rows or once for each. */
  weights?: Weights[];
  /** How many times what an adapter adds is added, from −1000 to 1000: one for all rows, or one for each. */
  strength?: number | number[];
}

export interface Options {
  /**
   * How much memory may keep what lies below all adapters, for texts that come again with another adapter; 0 keeps nothing, and
   * more needs a bundle with the graph `fanout`.
   */
  prefixBytes?: number;
}

type By = { adapter: Choice };

export class Service {
  private fed: Promise<FedAdapters> | null = null;
  private bank: Promise<Bank> | null = null;
  private reader: Promise<TextReader> | null = null;

  private fanout: Promise<Fanout> | null = null;
  private readonly prefixBytes: number;

  /** Throws a Fault if `prefixBytes` is no number of bytes. */
  constructor(
    readonly bundle: Bundle,
    { prefixBytes = 0 }: Options = {},
  ) {
    this.prefixBytes = prefixBytes;
    if (prefixBytes >= 0) return;
    throw new Fault({ what: "is no number of bytes", where: "`prefixBytes`", found: String(prefixBytes), expected: "0 or more" });
  }

  /** What became of the texts that could be kept; null where none may be. */
  async prefixes(): Promise<PrefixCounts | null> {
    return this.prefixBytes > 0 ? (await this.fanning()).prefixes : null;
  }

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle: no new session. */
  async load(name: string, bytes: Uint8Array, task: Task | null = null): Promise<void> {
    (await this.opened()).load(name, bytes, task);
  }

  /** Throws a Fault if the inputs do not fit, or nobody has one of the names. */
  async run(inputs: Inputs, call: Call): Promise<(Answer & By)[]> {
    const found = await this.computed(inputs, call);
    return found.map((answer, row) => ({ adapter: this.adapterOf(call, row), ...answer }));
  }

  /** Throws a Fault as `run`, or if a text is not what its adapter takes. */
  async answer(texts: Asked[], call: Call): Promise<(TextAnswer & By)[]> {
    return this.answerRead(await this.read(texts, call), call);
  }

  async answerRead(read: ReadText[], call: Call): Promise<(TextAnswer & By)[]> {
    const reader = await this.texts();
    const rows = read.flatMap((text, index) => text.rows.map((row) => ({ row, index })));
    const found = await this.answersOf(reader, rows, call);
    return read.map((text, index) => {
      return { adapter: text.adapter, ...reader.answer(text, found.filter((_, at) => rows[at]!.index === index)) };
    });
  }

  /** Texts as tokens, each as its adapter takes them. */
  async read(texts: Asked[], call: Call): Promise<ReadText[]> {
    if (!texts.length) throw new Fault({ what: "there is no text", expected: "at least one" });
    if (call.adapters && call.adapters.length !== texts.length) {
      throw new Fault({ what: "not one adapter for each row", found: `${call.adapters.length}`, expected: `${texts.length}` });
    }
    strengthsOf(call, texts.length);
    const [reader, runner] = [await this.texts(), await this.runner(call)];
    return texts.map((text, index) => {
      const adapter = this.adapterOf(call, index);
      return reader.read(text, adapter, runner.headOf(adapter).task);
    });
  }

  /** What the adapter of all rows of such a call, or of one of them, answers; null where nobody knows it. */
  async task(call: Call, row = 0): Promise<Task | null> {
    return (await this.runner(call)).headOf(this.adapterOf(call, row)).task;
  }

  /** Rows of one length go into one call: nothing is padded. */
  private async answersOf(reader: TextReader, rows: { row: Row; index: number }[], call: Call): Promise<Answer[]> {
    const found: Answer[] = [];
    for (const length of new Set(rows.map(({ row }) => row.ids.length))) {
      const places = rows.flatMap(({ row }, at) => (row.ids.length === length ? [at] : []));
      const group = places.map((at) => rows[at]!);
      const inputs = reader.inputs(group.map(({ row }) => row));
      const contexts = group.map(({ row }) => contextOf(row));
      const own = await this.computed(inputs, ofRows(call, group.map(({ index }) => index)), contexts);
      own.forEach((answer, at) => (found[places[at]!] = answer));
    }
    return found;
  }

  /** Where none is chosen, the base's own head answers, if it has one. */
  private adapterOf({ adapter = null, adapters }: Call, row: number): Choice {
    return (adapters ? adapters[row]! : adapter) ?? this.bundle.manifest.head;
  }

  /** Rows that share adapter and strength go into one call. */
  private async computed(inputs: Inputs, call: Call, contexts: boolean[][] = []): Promise<Answer[]> {
    checkCall(call);
    if (call.strength === undefined) return answers(await this.result(inputs, call), inputs, contexts);
    checkInputs(inputs, this.bundle.manifest);
    const rows = Array.from({ length: batchOf(inputs) }, (_, row) => row);
    const strengths = strengthsOf(call, rows.length);
    if (call.adapters) checkRows(inputs, this.bundle, call.adapters);
    const keys = rows.map((row) => JSON.stringify([this.adapterOf(call, row), strengths[row]]));
    checkRows(inputs, this.bundle, keys);
    const found: Answer[] = [];
    for (const key of new Set(keys)) {
      const places = rows.filter((row) => keys[row] === key);
      const own = takenRows(inputs, places);
      const result = await (await this.opened()).run(own, this.adapterOf(call, places[0]!), [], strengths[places[0]!]);
      const of = contexts.length ? places.map((row) => contexts[row]!) : [];
      answers(result, own, of).forEach((answer, at) => (found[places[at]!] = answer));
    }
    return found;
  }

  private async result(inputs: Inputs, call: Call): Promise<Result> {
    const { adapter, adapters, weights } = call;
    if (this.keeps(call)) {
      checkInputs(inputs, this.bundle.manifest);
      const rows = adapters ?? Array<null>(batchOf(inputs)).fill(null);
      return (await this.fanning()).runRows(inputs, rows.map((_, row) => this.adapterOf(call, row)));
    }
    if (adapters) return (await this.mixing()).run(inputs, adapters.map((each) => each ?? this.bundle.manifest.head));
    return (await this.opened()).run(inputs, adapter ?? this.bundle.manifest.head, weights);
  }

  private runner(call: Call): Promise<FedAdapters | Bank | Fanout> {
    if (this.keeps(call)) return this.fanning();
    return call.adapters && call.strength === undefined ? this.mixing() : this.opened();
  }

  /** Whether a call runs where rows are kept: with adapters of the bundle as they are. */
  private keeps({ adapter = null, adapters, weights, strength }: Call): boolean {
    if (!this.prefixBytes || weights || strength !== undefined) return false;
    return (adapters ?? [adapter]).every((name) => this.bundle.bank.rows.includes(name));
  }

  private fanning(): Promise<Fanout> {
    return (this.fanout ??= Fanout.open(this.bundle, this.prefixBytes));
  }

  private opened(): Promise<FedAdapters> {
    return (this.fed ??= FedAdapters.open(this.bundle));
  }

  private mixing(): Promise<Bank> {
    return (this.bank ??= Bank.open(this.bundle));
  }

  private texts(): Promise<TextReader> {
    return (this.reader ??= TextReader.open(this.bundle));
  }
}

/** A call for some of the texts. */
function ofRows(call: Call, indices: number[]): Call {
  const { adapters, weights, strength } = call;
  return {
    ...call,
    ...(adapters ? { adapters: indices.map((index) => adapters[index]!) } : {}),
    ...(Array.isArray(strength) ? { strength: indices.map((index) => strength[index]!) } : {}),
    ...(weights && weights.length > 1 ? { weights: indices.map((index) => weights[index]!) } : {}),
  };
}

/** Throws a Fault where it is not clear what a call asks. */
function checkCall({ adapter, adapters, weights, strength }: Call): void {
  if (adapter !== undefined && adapters) {
    throw new Fault({ what: "one call has one choice", expected: "`adapter` or `adapters`" });
  }
  if (weights && adapters) throw new Fault({ what: "weights go with one `adapter`" });
  if (weights && strength !== undefined) {
    const [what, fix] = ["weights are the strengths of a fusion's members", "multiply the weights by it"];
    throw new Fault({ what, where: "`strength`", fix });
  }
}

/** One for each row. */
function strengthsOf({ strength = 1 }: Call, rows: number): number[] {
  if (!Array.isArray(strength)) return Array<number>(rows).fill(strength);
  if (strength.length === rows) return strength;
  const [found, expected] = [`${strength.length}`, `${rows}, one for each row`];
  throw new Fault({ what: "strengths of another number than rows", found, expected });
}
