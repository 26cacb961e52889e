/** A bundle in use: the graph that a call needs is opened when the first such call comes. */
import { type Answer, answers } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";
import { Bank, FedAdapters, type Result, type Weights } from "./runners.js";
import type { Task } from "./task.js";
import { type Asked, type ReadText, type TextAnswer, TextReader, contextOf } from "./text.js";
import type { Row } from "./tokens.js";

/** Who runs the rows of a batch: an adapter or none for all of them, or one for each. */
export interface Call {
  adapter?: Choice;
  adapters?: Choice[];
  /** With an `adapter` that is a weighted fusion: what its members weigh, once for all rows or once for each. */
  weights?: Weights[];
}

type By = { adapter: Choice };

export class Service {
  private fed: Promise<FedAdapters> | null = null;
  private bank: Promise<Bank> | null = null;
  private reader: Promise<TextReader> | null = null;

  constructor(readonly bundle: Bundle) {}

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle: no new session. */
  async load(name: string, bytes: Uint8Array, task: Task | null = null): Promise<void> {
    (await this.opened()).load(name, bytes, task);
  }

  /** Throws a Fault if the inputs do not fit, or nobody has one of the names. */
  async run(inputs: Inputs, call: Call): Promise<(Answer & By)[]> {
    const found = answers(await this.result(inputs, call), inputs);
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
      const result = await this.result(inputs, ofRows(call, group.map(({ index }) => index)));
      const contexts = group.map(({ row }) => contextOf(row));
      answers(result, inputs, contexts).forEach((answer, at) => (found[places[at]!] = answer));
    }
    return found;
  }

  /** Where none is chosen, the base's own head answers, if it has one. */
  private adapterOf({ adapter = null, adapters }: Call, row: number): Choice {
    return (adapters ? adapters[row]! : adapter) ?? this.bundle.manifest.head;
  }

  private async result(inputs: Inputs, { adapter, adapters, weights }: Call): Promise<Result> {
    if (adapter !== undefined && adapters) {
      throw new Fault({ what: "one call has one choice", expected: "`adapter` or `adapters`" });
    }
    if (weights && adapters) throw new Fault({ what: "weights go with one `adapter`" });
    if (adapters) return (await this.mixing()).run(inputs, adapters.map((each) => each ?? this.bundle.manifest.head));
    return (await this.opened()).run(inputs, adapter ?? this.bundle.manifest.head, weights);
  }

  private runner({ adapters }: Call): Promise<FedAdapters | Bank> {
    return adapters ? this.mixing() : this.opened();
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
  const { adapters, weights } = call;
  return {
    ...call,
    ...(adapters ? { adapters: indices.map((index) => adapters[index]!) } : {}),
    ...(weights && weights.length > 1 ? { weights: indices.map((index) => weights[index]!) } : {}),
  };
}
