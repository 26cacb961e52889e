/** Runs rows, each with a choice of adapter: every row gets the outputs that it has alone, without padding. */
import type { Tensor } from "onnxruntime-common";

import { Adapters, type Weights } from "./adapters.js";
import { ownClasses } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type Head, type Inputs, NO_HEAD, checkInputs, checkStrength } from "./request.js";
import { Bank, Fanout, FedAdapters, type Outputs, type Result } from "./runners.js";
import { type PrefixCounts, joinedRows, taken } from "./rows.js";
import { type Arranged, calls, mayPad, padded, restored, withoutPadding } from "./sharing.js";
import type { Task } from "./task.js";

/** One row for the graph. */
export interface Request {
  /** A tensor `[1, …]` for each input of the base. */
  inputs: Inputs;
  /** Whether the row, which has no padding, is padded to a length that the base takes. */
  pads: boolean;
  adapter: Choice;
  /** The factor of the updates that the adapter adds. */
  strength: number;
  /** Of a weighted fusion, in place of its own. */
  weights: Weights | null;
}

/** A request that was checked, with its row as the graph takes it. */
export interface Prepared extends Omit<Request, "inputs" | "pads">, Arranged {}

interface Part {
  graph: "inputs" | "bank" | "fanout";
  places: number[];
}

export class Engine {
  /** The number of calls of ONNX Runtime so far, those below the first adapter aside. */
  calls = 0;
  private adapters: Promise<Adapters> | null = null;
  private fed: Promise<FedAdapters> | null = null;
  private bank: Promise<Bank> | null = null;
  private fanout: Promise<Fanout> | null = null;

  constructor(
    private readonly bundle: Bundle,
    private readonly prefixBytes: number,
  ) {}

  async load(name: string, bytes: Uint8Array, task: Task | null): Promise<void> {
    (await this.opened()).load(name, bytes, task);
  }

  /** Throws a Fault if there is no such adapter. */
  async headOf(choice: Choice): Promise<Head> {
    if (choice === null) return NO_HEAD;
    return this.bundle.manifest.adapters.find(({ name }) => name === choice) ?? (await this.opened()).headOf(choice);
  }

  async prefixes(): Promise<PrefixCounts | null> {
    return this.prefixBytes > 0 ? (await this.fanning()).prefixes : null;
  }

  /** Throws a Fault if the inputs do not fit, or if the row would have to be padded where that changes its result. */
  async prepare(request: Request): Promise<Prepared> {
    const [{ manifest }, { inputs, pads, ...choice }] = [this.bundle, request];
    checkStrength(choice.strength);
    if (choice.weights && choice.strength !== 1) {
      const fix = "multiply the weights by it";
      throw new Fault({ what: "weights are the strengths of a fusion's members", where: "`strength`", fix });
    }
    if (!pads) checkInputs(inputs, manifest);
    const arranged = (pads ? padded : withoutPadding)(inputs, manifest, await this.mayPad(choice));
    checkInputs(arranged.inputs, manifest);
    return { ...arranged, ...choice };
  }

  /** The outputs of each row, `[1, …]`: those of the base and of its adapter's head. */
  async run(rows: Prepared[]): Promise<Outputs[]> {
    const found: Outputs[] = [];
    for (const call of calls(rows.map(({ inputs }) => inputs), this.bundle.manifest)) {
      for (const part of this.divided(call, rows)) {
        const own = part.places.map((place) => rows[place]!);
        const result = await this.computed(part.graph, own);
        part.places.forEach((place, at) => (found[place] = this.outputsOf(result, at, own)));
      }
    }
    return found;
  }

  private async mayPad({ adapter, strength, weights }: Omit<Request, "inputs" | "pads">): Promise<boolean> {
    const { manifest } = this.bundle;
    if (adapter === null || !manifest.padding_neutral || !manifest.counts_padding.length) return mayPad(manifest, null);
    return mayPad(manifest, await (await this.opened()).tensors(adapter, strength, weights ? [weights] : []));
  }

  /** The rows of a call by the graph that runs them. Of `inputs`, a call takes one adapter at one strength. */
  private divided(places: number[], rows: Prepared[]): Part[] {
    const { graphs, bank } = this.bundle.manifest;
    const inBank = places.filter((place) => {
      const { adapter, strength, weights } = rows[place]!;
      return !weights && strength === 1 && bank?.rows.includes(adapter);
    });
    const adapters = new Set(inBank.map((place) => rows[place]!.adapter));
    const usesBank = (adapters.size > 1 || !graphs.inputs) && !!graphs.bank;
    const mixing = this.prefixBytes > 0 ? "fanout" : usesBank ? "bank" : "inputs";
    const mixed = new Set(inBank);
    const found = new Map<string, Part>();
    for (const place of places) {
      const { adapter, strength, weights } = rows[place]!;
      const graph = mixed.has(place) ? mixing : "inputs";
      const key = graph === "inputs" ? JSON.stringify([adapter, strength, weights !== null]) : graph;
      if (!found.has(key)) found.set(key, { graph, places: [] });
      found.get(key)!.places.push(place);
    }
    return [...found.values()];
  }

  private async computed(graph: Part["graph"], rows: Prepared[]): Promise<Result> {
    this.calls += 1;
    const [inputs, adapters] = [joinedRows(rows.map((row) => row.inputs)), rows.map(({ adapter }) => adapter)];
    const { adapter, strength } = rows[0]!;
    if (graph === "fanout") return (await this.fanning()).runRows(inputs, adapters);
    if (graph === "bank") return (await this.mixing()).run(inputs, adapters);
    return (await this.feeding()).run(inputs, adapter, strength, rows.flatMap(({ weights }) => (weights ? [weights] : [])));
  }

  private outputsOf({ outputs, heads }: Result, at: number, rows: Prepared[]): Outputs {
    const { manifest } = this.bundle;
    const ofHeads = manifest.heads.map(({ output }) => output);
    const others = [...ofHeads.filter((name) => name !== heads[at]!.output), manifest.checksums];
    const own = Object.entries(outputs).filter(([name]) => !others.includes(name));
    return Object.fromEntries(
      own.map(([name, tensor]): [string, Tensor] => {
        const row = ofHeads.includes(name) ? ownClasses(tensor, at) : rows.length === 1 ? tensor : taken(tensor, [at]);
        return [name, restored(row, manifest.outputs.find((each) => each.name === name)!.axes, rows[at]!.moved)];
      }),
    );
  }

  private opened(): Promise<Adapters> {
    return (this.adapters ??= Adapters.open(this.bundle));
  }

  private feeding(): Promise<FedAdapters> {
    return (this.fed ??= this.opened().then((adapters) => FedAdapters.open(this.bundle, adapters)));
  }

  private mixing(): Promise<Bank> {
    return (this.bank ??= Bank.open(this.bundle));
  }

  private fanning(): Promise<Fanout> {
    return (this.fanout ??= Fanout.open(this.bundle, this.prefixBytes));
  }
}
