/** A bundle in use: the graph that a call needs is opened when the first such call comes. */
import { type Answer, answers } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";
import { Bank, FedAdapters, Mixture, type Result, type Shares, type Weights } from "./runners.js";

/** Who runs the rows of a batch: an adapter or none for all of them, one for each, or shares of several for each. */
export interface Call {
  adapter?: Choice;
  adapters?: Choice[];
  mixture?: Shares[];
  /** With an `adapter` that is a weighted fusion: what its members weigh, once for all rows or once for each. */
  weights?: Weights[];
}

/** Who ran a row. */
export interface Chosen {
  adapter?: Choice;
  mixture?: Shares;
}

export class Service {
  private fed: Promise<FedAdapters> | null = null;
  private bank: Promise<Bank> | null = null;
  private mixture: Promise<Mixture> | null = null;

  constructor(readonly bundle: Bundle) {}

  /** Open what such a call needs, so that the first one takes no longer than others. */
  async prepare({ adapters, mixture }: Call): Promise<void> {
    await (mixture ? this.blending() : adapters ? this.mixing() : this.opened());
  }

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle: no new session. */
  async load(name: string, bytes: Uint8Array, labels: string[] | null = null): Promise<void> {
    (await this.opened()).load(name, bytes, labels);
  }

  /** Throws a Fault if the inputs do not fit, or nobody has one of the names. */
  async run(inputs: Inputs, call: Call): Promise<(Answer & Chosen)[]> {
    const found = answers(await this.result(inputs, call), inputs);
    const { adapter = null, adapters, mixture } = call;
    return found.map((answer, row) => {
      return { ...(mixture ? { mixture: mixture[row] } : { adapter: adapters ? adapters[row] : adapter }), ...answer };
    });
  }

  private async result(inputs: Inputs, { adapter, adapters, mixture, weights }: Call): Promise<Result> {
    if ([adapter, adapters, mixture].filter((each) => each !== undefined).length > 1) {
      throw new Fault({ what: "one call has one choice", expected: "`adapter`, `adapters` or `mixture`" });
    }
    if (weights && (adapters || mixture)) throw new Fault({ what: "weights go with one `adapter`" });
    if (mixture) return (await this.blending()).run(inputs, mixture);
    if (adapters) return (await this.mixing()).run(inputs, adapters);
    return (await this.opened()).run(inputs, adapter ?? null, weights);
  }

  private opened(): Promise<FedAdapters> {
    return (this.fed ??= FedAdapters.open(this.bundle));
  }

  private mixing(): Promise<Bank> {
    return (this.bank ??= Bank.open(this.bundle));
  }

  private blending(): Promise<Mixture> {
    return (this.mixture ??= Mixture.open(this.bundle));
  }
}
