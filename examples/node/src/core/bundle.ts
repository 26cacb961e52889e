/** A bundle: its manifest, and its files, compared with their hashes wherever they come from. */
import { type InferenceSession, type Tensor, env } from "onnxruntime-common";

import { Fault } from "./fault.js";
import {
  type AdapterRecord,
  type BankRecord,
  type FanoutRecord,
  type FileRecord,
  type GoldenRecord,
  HEAD,
  type Manifest,
  checkPath,
  parseManifest,
} from "./manifest.js";
import { metadataOf } from "./onnxMetadata.js";
import type { StrengthParameters } from "./request.js";
import { parseSafetensors } from "./safetensors.js";

/** An adapter, or none: the base as it is. */
export type Choice = string | null;

const MANIFEST = "manifest.json";
/** Files that a manifest does not list: itself, and what is made from it (signature, check report, model card). */
const UNLISTED = [MANIFEST, "model.sig", "check.json", "README.md"];

/** The files with the weights of the base, and with the adapters of the bank. */
const [BASE_WEIGHTS, BANK_WEIGHTS] = ["base.bin", "bank.bin"];

/** The metadata key of the graphs for the parameters that scale an adapter's updates, as JSON. */
const STRENGTH_KEY = "adapter_export.strength";

/** The source of a bundle: a folder or a server. */
export interface Place {
  readonly name: string;
  readonly runtime: Runtime;
  /** The bytes of a file; throws a Fault if it is missing or leads out of the bundle. */
  read(path: string): Promise<Uint8Array>;
  /** The size and the sha256 of a file, which may be larger than memory; a place may keep a copy of it for `open`. */
  measure(path: string): Promise<Measured>;
  /** Open an ONNX graph with its weights in other files, from the bytes that `files` compared with their hashes. */
  open(graph: string, weights: string[], files: Bundle): Promise<InferenceSession>;
  /** The paths of all files, where there is a way to know. */
  list?(): Promise<string[]>;
}

/** The library that runs the graphs of a place. */
export interface Runtime {
  /** The version of ONNX Runtime. */
  version: string;
  /** Its execution provider. */
  provider: string;
}

export interface Measured {
  bytes: number;
  /** 64 lower-case hexadecimal digits. */
  sha256: string;
}

export class Bundle {
  private readonly checked = new Map<string, Promise<void>>();

  private constructor(
    private readonly place: Place,
    readonly manifest: Manifest,
  ) {}

  /** Open a bundle. A file is compared with its size and hash when it is read; `verify` compares all of them. */
  static async open(place: Place): Promise<Bundle> {
    const [bytes, where] = [await place.read(MANIFEST), `${place.name}/${MANIFEST}`];
    const manifest = parseManifest(bytes, where);
    await checkChecksum(bytes, manifest.checksum, where);
    const [found, expected] = [env.versions.common, manifest.minimum_onnxruntime];
    if (release(found) < release(expected)) {
      throw new Fault({ what: "needs a newer ONNX Runtime", where: place.name, found, expected: `${expected} or newer` });
    }
    return new Bundle(place, manifest);
  }

  /** Compare every file with its size and hash, and the folder with the list of files. */
  async verify(): Promise<void> {
    for (const file of this.manifest.files) await this.check(file.path);
    for (const path of (await this.place.list?.()) ?? []) if (!UNLISTED.includes(path) && !isHidden(path)) this.record(path);
  }

  /** Compare a file with its size and hash, once: a copy that is made again may be in use. */
  async check(path: string): Promise<void> {
    const compared = async () => this.compare(this.record(path), await this.place.measure(path));
    if (!this.checked.has(path)) this.checked.set(path, compared());
    return this.checked.get(path);
  }

  /** The bytes of a file, after they were compared with its hash. */
  async read(path: string): Promise<Uint8Array> {
    const record = this.record(path);
    const bytes = await this.place.read(path);
    this.compare(record, await measured(bytes));
    return bytes;
  }

  get runtime(): Runtime {
    return this.place.runtime;
  }

  private record(path: string): FileRecord {
    const where = `${this.place.name}/${path}`;
    checkPath(path, where);
    const record = this.manifest.files.find((file) => file.path === path);
    if (!record) throw new Fault({ what: "is not listed in the manifest", where, fix: "take it out of the bundle" });
    return record;
  }

  private compare(record: FileRecord, found: Measured): void {
    const where = `${this.place.name}/${record.path}`;
    const fix = "get the file from its source again";
    if (found.bytes !== record.bytes) {
      const what = "does not match its recorded size";
      throw new Fault({ what, where, found: `${found.bytes} bytes`, expected: `${record.bytes} bytes`, fix });
    }
    if (found.sha256 !== record.sha256) {
      const what = "has been changed or damaged since it was written";
      throw new Fault({ what, where, found: `sha256 ${found.sha256}`, expected: `sha256 ${record.sha256}`, fix });
    }
  }

  async tensors(path: string): Promise<Map<string, Tensor>> {
    return parseSafetensors(await this.read(path), `${this.place.name}/${path}`);
  }

  /** Open the graph of a variant, or the one below `fanout`. */
  async open(variant: "inputs" | "bank" | "fanout" | "prefix"): Promise<InferenceSession> {
    const { graphs, fanout } = this.manifest;
    const graph = variant === "prefix" ? fanout?.prefix : graphs[variant];
    if (!graph) {
      const fix = `build it with \`--variants ${variant === "inputs" || variant === "bank" ? variant : "bank,fanout"}\``;
      throw new Fault({ what: `has no graph of variant \`${variant}\``, where: this.place.name, fix });
    }
    return this.openGraph(graph, variant === "bank" || variant === "fanout" ? [BASE_WEIGHTS, BANK_WEIGHTS] : [BASE_WEIGHTS]);
  }

  /** Open the graph in which an adapter is constant. */
  async openBaked(adapter: string): Promise<InferenceSession> {
    const graph = this.adapter(adapter).baked;
    if (!graph) throw new Fault({ what: `has no graph with \`${adapter}\` baked in`, where: this.place.name });
    return this.openGraph(graph, [BASE_WEIGHTS]);
  }

  /** By which parameters adapters are scaled; read from the graph `inputs`. Throws a Fault if it does not say. */
  async strengthParameters(): Promise<StrengthParameters> {
    const graph = this.manifest.graphs.inputs ?? "";
    const where = `\`${STRENGTH_KEY}\` in the metadata of \`${graph}\``;
    const found = metadataOf(await this.read(graph), STRENGTH_KEY);
    if (found === null) {
      const [what, fix] = ["the bundle does not say how its adapters are scaled", "build it again, or leave the strength out"];
      throw new Fault({ what, where, found: "a bundle of an earlier release", fix });
    }
    const document = JSON.parse(found) as StrengthParameters;
    if (this.manifest.slots.some(({ site, graph: name }) => site !== HEAD && !Object.hasOwn(document, name))) {
      throw new Fault({ what: "does not name all graphs of the bundle", where, fix: "build it again" });
    }
    return document;
  }

  private openGraph(graph: string, weights: string[]): Promise<InferenceSession> {
    const there = weights.filter((path) => this.manifest.files.some((file) => file.path === path));
    return this.place.open(graph, there, this);
  }

  /** Throws a Fault that lists the bundle's adapters if it is not one of them. */
  adapter(name: string): AdapterRecord {
    const record = this.manifest.adapters.find((each) => each.name === name);
    if (record) return record;
    const known = this.manifest.adapters.map((each) => `\`${each.name}\``).join(", ");
    const [where, fix] = [`adapter \`${name}\``, "choose one that is there"];
    throw new Fault({ what: "is not in the bundle", where, expected: known ? `one of ${known}` : "none", fix });
  }

  /** Throws a Fault if the bundle was built without such a graph. */
  get fanout(): FanoutRecord {
    const { fanout } = this.manifest;
    if (!fanout) throw new Fault({ what: "the manifest describes no fan-out", where: this.place.name });
    return fanout;
  }

  /** Throws a Fault if the bundle was built without a bank. */
  get bank(): BankRecord {
    const { bank } = this.manifest;
    if (!bank) throw new Fault({ what: "the manifest describes no bank", where: this.place.name });
    return bank;
  }

  golden(choice: Choice): GoldenRecord {
    return choice === null ? this.manifest.golden : this.adapter(choice).golden;
  }

  /** The base, and all adapters. */
  get choices(): Choice[] {
    return [null, ...this.manifest.adapters.map((record) => record.name)];
  }
}

/** Operating systems and download tools create hidden files. */
function isHidden(path: string): boolean {
  return path.split("/").some((part) => part.startsWith("."));
}

/** 1.21 → 1021 */
function release(version: string): number {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return 1000 * major + minor;
}

/** Compare a file with the checksum in it: the sha256 of its bytes with zeros in place of these 64 digits. */
async function checkChecksum(bytes: Uint8Array, checksum: string | undefined, where: string): Promise<void> {
  if (checksum === undefined) return;
  const text = new TextDecoder().decode(bytes).replaceAll(checksum, "0".repeat(checksum.length));
  const { sha256 } = await measured(new TextEncoder().encode(text));
  if (sha256 !== checksum) {
    const [what, fix] = ["has been changed or damaged since it was written", "get the file from its source again"];
    throw new Fault({ what, where, found: `sha256 ${sha256}`, expected: `sha256 ${checksum}`, fix });
  }
}

export async function measured(bytes: Uint8Array): Promise<Measured> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>));
  return { bytes: bytes.length, sha256: Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") };
}
