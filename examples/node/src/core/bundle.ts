/** A bundle: its manifest, and its files held against their hashes, wherever they come from. */
import type { InferenceSession, Tensor } from "onnxruntime-common";

import { Fault } from "./fault.js";
import { type AdapterRecord, type GoldenRecord, type Manifest, checkPath, parseManifest } from "./manifest.js";
import { parseSafetensors } from "./safetensors.js";

/** An adapter, or none: the base as it is. */
export type Choice = string | null;

/** The files with the weights of the base, and with the adapters of the bank. */
const [BASE_WEIGHTS, BANK_WEIGHTS] = ["base.bin", "bank.bin"];

/** Where a bundle lies: a folder, or a server. */
export interface Place {
  readonly name: string;
  /** The bytes of a file; throws a Fault if it is missing or leads out of the bundle. */
  read(path: string): Promise<Uint8Array>;
  /** Open an ONNX graph whose weights lie in other files; `read` gives verified bytes, where bytes are needed. */
  open(graph: string, weights: string[], read: (path: string) => Promise<Uint8Array>): Promise<InferenceSession>;
}

export class Bundle {
  private constructor(
    private readonly place: Place,
    readonly manifest: Manifest,
  ) {}

  /** Open a bundle. What is read later is held against its size and its hash then; `verify` does so with every file. */
  static async open(place: Place): Promise<Bundle> {
    return new Bundle(place, parseManifest(await place.read("manifest.json"), `${place.name}/manifest.json`));
  }

  /** Hold every file against its size and its hash. */
  async verify(): Promise<void> {
    for (const file of this.manifest.files) await this.read(file.path);
  }

  /** The bytes of a file, held against its hash: what is hashed is what is used. */
  async read(path: string): Promise<Uint8Array> {
    const where = `${this.place.name}/${path}`;
    checkPath(path, where);
    const record = this.manifest.files.find((file) => file.path === path);
    if (!record) throw new Fault({ what: "is not listed in the manifest", where });
    const bytes = await this.place.read(path);
    const fix = "take the file from its source again";
    if (bytes.length !== record.bytes) {
      const [found, expected] = [`${bytes.length} bytes`, `${record.bytes} bytes`];
      throw new Fault({ what: "has another size than when it was written", where, found, expected, fix });
    }
    const found = await sha256(bytes);
    if (found !== record.sha256) {
      const expected = `sha256 ${record.sha256}`;
      throw new Fault({ what: "has been changed or damaged", where, found: `sha256 ${found}`, expected, fix });
    }
    return bytes;
  }

  async tensors(path: string): Promise<Map<string, Tensor>> {
    return parseSafetensors(await this.read(path), `${this.place.name}/${path}`);
  }

  /** Open the graph of a flavour. */
  async open(flavour: "inputs" | "bank"): Promise<InferenceSession> {
    const graph = this.manifest.graphs[flavour];
    if (!graph) {
      const fix = `build it with \`--flavours ${flavour}\``;
      throw new Fault({ what: `has no graph of flavour \`${flavour}\``, where: this.place.name, fix });
    }
    return this.openGraph(graph, flavour === "bank" ? [BASE_WEIGHTS, BANK_WEIGHTS] : [BASE_WEIGHTS]);
  }

  /** Open the graph in which an adapter is constant. */
  async openBaked(adapter: string): Promise<InferenceSession> {
    const graph = this.adapter(adapter).baked;
    if (!graph) throw new Fault({ what: `has no graph with \`${adapter}\` baked in`, where: this.place.name });
    return this.openGraph(graph, [BASE_WEIGHTS]);
  }

  private openGraph(graph: string, weights: string[]): Promise<InferenceSession> {
    const there = weights.filter((path) => this.manifest.files.some((file) => file.path === path));
    return this.place.open(graph, there, (path) => this.read(path));
  }

  /** Throws a Fault that names those that there are. */
  adapter(name: string): AdapterRecord {
    const record = this.manifest.adapters.find((each) => each.name === name);
    if (record) return record;
    const expected = `one of ${this.manifest.adapters.map((each) => `\`${each.name}\``).join(", ")}`;
    throw new Fault({ what: "is not in the bundle", where: `adapter \`${name}\``, expected });
  }

  golden(choice: Choice): GoldenRecord {
    return choice === null ? this.manifest.golden : this.adapter(choice).golden;
  }

  /** The base, and all adapters. */
  get choices(): Choice[] {
    return [null, ...this.manifest.adapters.map((record) => record.name)];
  }
}

async function sha256(bytes: Uint8Array): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
