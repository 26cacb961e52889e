/** A bundle in use: the graph that a call needs is opened when the first such call comes. */
import { type Answer, answers } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";
import { Bank, FedAdapters, type Result, type Weights } from "./runners.js";
import type { Task } from "./task.js";

/** Who runs the rows of a batch: an adapter or none for all of them, or one for each. */
export interface Call {
  adapter?: Choice;
  adapters?: Choice[];
  /** With an `adapter` that is a weighted fusion: what its members weigh, once for all rows or once for each. */
  weights?: Weights[];
}

export class Service {
  private fed: Promise<FedAdapters> | null = null;
  private bank: Promise<Bank> | null = null;

  constructor(readonly bundle: Bundle) {}

  /** Open what such a call needs, so that the first one takes no longer than others. */
  async prepare({ adapters }: Call): Promise<void> {
    await (adapters ? this.mixing() : this.opened());
  }

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle: no new session. */
  async load(name: string, bytes: Uint8Array, task: Task | null = null): Promise<void> {
    (await this.opened()).load(name, bytes, task);
  }

  /** Throws a Fault if the inputs do not fit, or nobody has one of the names. */
  async run(inputs: Inputs, call: Call): Promise<(Answer & { adapter: Choice })[]> {
    const found = answers(await this.result(inputs, call), inputs);
    return found.map((answer, row) => ({ adapter: this.adapterOf(call, row), ...answer }));
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

  private opened(): Promise<FedAdapters> {
    return (this.fed ??= FedAdapters.open(this.bundle));
  }

  private mixing(): Promise<Bank> {
    return (this.bank ??= Bank.open(this.bundle));
  }
}
