/** The manifest of a bundle, as far as this client reads it (schemas/bundle-manifest.schema.json has all of it). */
import { Fault } from "./fault.js";

export type Axis = number | string;

export interface InputRecord {
  name: string;
  dtype: "int64" | "int32" | "float32" | "bool";
  axes: Axis[];
  role: "ids" | "mask" | "cache" | "values";
  limit: number | null;
}

export interface SlotRecord {
  name: string;
  site: string;
  graph: string;
  axes: Axis[];
  neutral: number[];
  neutral_value?: number;
}

export interface GoldenRecord {
  path: string;
  cases: string[];
  absolute: Record<string, number>;
}

export interface AdapterRecord {
  name: string;
  labels: string[] | null;
  safetensors: string;
  /** The graph in which it is constant. */
  baked?: string | null;
  /** The output that holds the result of its head. */
  output: string | null;
  golden: GoldenRecord;
}

/** `rows[i]` is the adapter that row i of the bank holds; null is the base. */
export interface BankRecord {
  ids: string;
  weights: string;
  rows: (string | null)[];
}

export interface FileRecord {
  path: string;
  sha256: string;
  bytes: number;
}

export interface Manifest {
  version: string;
  batch_invariant: boolean;
  graphs: Partial<Record<"slots" | "inputs" | "bank" | "mixture", string>>;
  inputs: InputRecord[];
  outputs: { name: string; axes: Axis[] }[];
  slots: SlotRecord[];
  adapters: AdapterRecord[];
  bank?: BankRecord | null;
  golden: GoldenRecord;
  text: { tokenizer: string; max_tokens: number } | null;
  files: FileRecord[];
}

const MAJOR = "1";
const LISTS = ["inputs", "outputs", "slots", "adapters", "files"] as const;
const PATH_PART = /^[^\u0000-\u001f\u007f/\\:]+$/;

/** Read a manifest; throws a Fault if it breaks the format, or is of a newer major version. */
export function parseManifest(bytes: Uint8Array, where: string): Manifest {
  let document: Manifest;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Manifest;
  } catch (error) {
    throw new Fault({ what: "is no JSON", where, found: String(error), fix: "build the bundle again" });
  }
  if (typeof document?.version !== "string") throw new Fault({ what: "is no manifest of a bundle", where });
  if (document.version.split(".")[0] !== MAJOR) {
    const fix = "take a newer client, or build the bundle again";
    throw new Fault({ what: "is of another major version", where, found: document.version, expected: `${MAJOR}.x`, fix });
  }
  const missing = LISTS.filter((key) => !Array.isArray(document[key]));
  if (missing.length) throw new Fault({ what: "lacks what a manifest has", where, found: `no ${missing.join(", ")}` });
  document.files.forEach((file) => checkPath(file.path, where));
  checkNames(document, where);
  return document;
}

/** Throws a Fault for a path that may leave its folder. */
export function checkPath(path: string, where: string): void {
  const parts = String(path).split("/");
  if (!parts.every((part) => PATH_PART.test(part) && part !== "." && part !== "..")) {
    const expected = "a relative path without `.`, `..`, `:` and `\\`";
    throw new Fault({ what: "a path that may leave its folder", where, found: `\`${path}\``, expected });
  }
}

function checkNames(manifest: Manifest, where: string): void {
  const tensors = [...manifest.inputs, ...manifest.slots].map((record) => record.name);
  for (const names of [tensors, manifest.adapters.map((record) => record.name)]) {
    const twice = names.find((name, at) => names.indexOf(name) !== at);
    if (twice !== undefined) throw new Fault({ what: "two things have one name", where, found: `\`${twice}\`` });
  }
  if (manifest.inputs.some((record) => record.role === "cache")) {
    throw new Fault({ what: "is of a decoder with a cache, which this client does not keep", where });
  }
}
