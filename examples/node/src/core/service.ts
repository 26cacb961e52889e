/** A bundle in use: rows of texts or arrays in, answers out. */
import type { Tensor } from "onnxruntime-common";

import type { Weights } from "./adapters.js";
import { type By, type Context, answerTo } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Engine, type Prepared } from "./engine.js";
import { Fault } from "./fault.js";
import type { Head, Inputs } from "./request.js";
import type { PrefixCounts } from "./rows.js";
import type { Outputs } from "./runners.js";
import type { Task } from "./task.js";
import { type Asked, type ReadText, type TextAnswer, TextReader } from "./text.js";

/** The adapter of a row and how it is applied. */
export interface Chosen {
  /** Null or `base` is the base, which its head answers if it has one. Required where other adapters have tasks. */
  adapter?: Choice;
  /** The factor of the updates that the adapter adds, from −1000 to 1000; 1 by default. Heads are not scaled. */
  strength?: number;
  /** Of an adapter that is a weighted fusion: the weight of each member, in place of its own. */
  weights?: Weights;
}

/** A row of arrays: a tensor `[1, …]` for each input of the base. */
export interface Arrays {
  inputs: Inputs;
  /** Required for a `span`: which tokens of the row may be the answer. */
  context?: Context;
  /** Pad the row, which has no padding, to a length that the base takes. Default: false, a row of another length is refused. */
  pads?: boolean;
}

/** A row to answer. */
export type Row = (Asked | Arrays) & Chosen;

/** A row that was checked, with its tokens if it came as text. */
export interface ReadRow {
  asked: Asked | Arrays;
  adapter: Choice;
  head: Head;
  text: ReadText | null;
  /** One, or one for each choice of a question. */
  requests: Prepared[];
}

export interface Options {
  /**
   * The memory in bytes for what was computed below all adapters, for rows that come again with another adapter. Default: 0, no
   * cache. The bundle needs the graph `fanout`.
   */
  prefixBytes?: number;
}

/** Names the base in rows, where no adapter has this name. */
const BASE = "base";

/** A row that names no adapter, where the base would answer although adapters have tasks. */
export class Unnamed extends Fault {
  constructor(answering: string[]) {
    const found = `adapters that answer: ${answering.map((name) => `\`${name}\``).join(", ")}`;
    super({ what: "no adapter is named", found, expected: `one of them, or \`${BASE}\` for the base without them` });
  }
}

export class Service {
  private readonly engine: Engine;
  private reader: Promise<TextReader> | null = null;
  private readonly loaded: string[] = []; // those with tasks

  /** Throws a Fault if `prefixBytes` is negative. */
  constructor(
    readonly bundle: Bundle,
    { prefixBytes = 0 }: Options = {},
  ) {
    this.engine = new Engine(bundle, prefixBytes);
    if (prefixBytes >= 0) return;
    throw new Fault({ what: "is not a number of bytes", where: "`prefixBytes`", found: String(prefixBytes), expected: "0 or more" });
  }

  /** The number of calls of ONNX Runtime so far. */
  get calls(): number {
    return this.engine.calls;
  }

  /** The counters of the cache below all adapters; null without it. */
  async prefixes(): Promise<PrefixCounts | null> {
    return this.engine.prefixes();
  }

  /** Load an adapter from the bytes of an `.onnx_adapter` file that was built for this bundle; no session is opened again. */
  async load(name: string, bytes: Uint8Array, task: Task | null = null): Promise<void> {
    await this.engine.load(name, bytes, task);
    if (task) this.loaded.push(name);
  }

  /** The task of the adapter that answers a row; null if it is unknown. */
  async task({ adapter }: Chosen): Promise<Task | null> {
    return (await this.engine.headOf(this.chosen(adapter))).task;
  }

  /**
   * Answer rows, in their order: each gets the answer that it has alone, without padding.
   *
   * Throws a Fault if a row is not one that its adapter takes, or if there is no such adapter.
   */
  async answer(rows: Row[]): Promise<TextAnswer[]> {
    return this.answerRead(await this.read(rows));
  }

  /** Check rows and tokenize texts by the task of each row's adapter. */
  async read(rows: Row[]): Promise<ReadRow[]> {
    if (!rows.length) throw new Fault({ what: "there are no rows", expected: "at least one" });
    const found: ReadRow[] = [];
    for (const [at, row] of rows.entries()) {
      found.push(await Fault.at(rows.length > 1 ? `row ${at}` : "", () => this.readRow(row)));
    }
    return found;
  }

  /** Answer rows that `read` returned. */
  async answerRead(rows: ReadRow[]): Promise<TextAnswer[]> {
    const outputs = await this.engine.run(rows.flatMap(({ requests }) => requests));
    let first = 0;
    const found: TextAnswer[] = [];
    for (const [at, row] of rows.entries()) {
      const own = outputs.slice(first, (first += row.requests.length));
      found.push(await Fault.at(rows.length > 1 ? `row ${at}` : "", () => this.answered(row, own)));
    }
    return found;
  }

  private async readRow({ adapter: named, strength = 1, weights, ...asked }: Row): Promise<ReadRow> {
    const adapter = this.chosen(named);
    const [choice, head] = [{ adapter, strength, weights: weights ?? null }, await this.engine.headOf(adapter)];
    if ("inputs" in asked) {
      if (head.task?.type === "span" && !asked.context) {
        const expected = "`context`, a 1 for each token that may be the answer";
        throw new Fault({ what: "a row of arrays for a `span` needs its context", where: `adapter \`${adapter}\``, expected });
      }
      const request = { inputs: asked.inputs, pads: asked.pads ?? false, ...choice };
      return { asked, adapter, head, text: null, requests: [await this.engine.prepare(request)] };
    }
    const reader = await (this.reader ??= TextReader.open(this.bundle));
    const text = reader.read(asked, adapter, head.task);
    const requests: Prepared[] = [];
    for (const row of text.rows) requests.push(await this.engine.prepare({ inputs: reader.inputs(row), pads: true, ...choice }));
    return { asked, adapter, head, text, requests };
  }

  private async answered({ asked, adapter, head, text }: ReadRow, outputs: Outputs[]): Promise<TextAnswer> {
    const by: By = { adapter, task: head.output === null ? null : (head.task?.type ?? null) };
    if (text) return { ...by, ...(await this.reader!).answer(text, head, outputs) };
    const { inputs, context } = asked as Arrays;
    return { ...by, ...answerTo(head, outputs[0]!, this.realTokens(inputs, outputs[0]![head.output ?? ""]), context ?? null) };
  }

  /** Which tokens of a result are no padding, by the mask of its axis of tokens; null without a mask. */
  private realTokens(inputs: Inputs, result: Tensor | undefined): boolean[] | null {
    const masks = this.bundle.manifest.inputs.filter(({ role, axes }) => role === "mask" && axes.length === 2);
    const mask = masks.find(({ name }) => inputs[name]!.dims[1] === result?.dims[1]);
    return mask ? Array.from(inputs[mask.name]!.data as ArrayLike<unknown>, (number) => Number(number) !== 0) : null;
  }

  /** Throws `Unnamed` if a row names no adapter although adapters beside the base head have tasks. */
  private chosen(adapter?: Choice): Choice {
    const { adapters, head } = this.bundle.manifest;
    const built = adapters.filter(({ name, task }) => task && name !== head).map(({ name }) => name);
    const answering = [...built, ...this.loaded];
    if (adapter === undefined && answering.length) throw new Unnamed(answering);
    const isBase = adapter === BASE && !adapters.some(({ name }) => name === BASE) && !this.loaded.includes(BASE);
    return (isBase ? null : adapter) ?? head;
  }
}
