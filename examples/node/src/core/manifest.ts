/** The manifest of a bundle, as far as this client reads it (schemas/bundle-manifest.schema.json has all of it). */
import { Fault } from "./fault.js";
import { type Result, type Task, parseTask } from "./task.js";

/** The site of slots that belong to heads. */
export const HEAD = "head";

export type Axis = number | string;

export interface InputRecord {
  name: string;
  dtype: "int64" | "int32" | "float32" | "bool";
  axes: Axis[];
  role: "ids" | "mask" | "cache" | "values";
  /** Valid ids are 0 to limit − 1. */
  limit?: number | null;
}

/** The lengths that an axis may have: multiples of a number in a range, except some. */
export interface LengthsRecord {
  minimum?: number;
  maximum?: number | null;
  multiple_of?: number;
  exceptions?: number[];
}

export interface SlotRecord {
  name: string;
  /** `head` for those of heads. */
  site: string;
  graph: string;
  parameter: string;
  axes: Axis[];
  neutral: number[];
  neutral_value?: number;
}

export interface GoldenRecord {
  path: string;
  cases: string[];
  absolute: Record<string, number>;
  /** How clearly golden data show faults of the adapter; for people. */
  separation?: { nearest?: object | null } | null;
  /** Null where golden vectors tell every fault of the adapter. */
  parts?: PartsRecord | null;
  /** By graph, the sha256 of the outputs in the cases of `Manifest.recorded`. */
  recorded?: Record<string, string>;
  /** Texts that the reference writes; this client writes none. */
  written?: object[];
}

/** Cases that show faults of an adapter that golden vectors do not show (docs/reference/format.md, "Golden parts"). */
export interface PartsRecord {
  path: string;
  cases: string[];
  parts: PartRecord[];
}

/** The value `factor` · Σ weight · (found − expected) is near 1 with the fault, and within ±`limit` without it. */
export interface PartRecord {
  /** Such as `layers.5.ffn off`. */
  fault: string;
  output: string;
  factor: number;
  limit: number;
}

/** Where ONNX Runtime ran the golden vectors when the bundle was built (docs/reference/format.md, "Recorded runs"). */
export interface RecordedRuns {
  /** The version of ONNX Runtime. */
  runtime: string;
  /** Its execution provider. */
  provider: string;
  cases: string[];
}

export interface AdapterRecord {
  name: string;
  /** The meaning of its answers; null without a head, or if unknown. */
  task: Task | null;
  onnx_adapter: string;
  safetensors: string;
  /** The graph in which it is constant. */
  baked?: string | null;
  /** The output that holds the result of its head; null for an adapter without one. */
  output: string | null;
  golden: GoldenRecord;
  /** The weights that a request may set; null if it is not a weighted fusion. */
  mix?: MixRecord | null;
}

/** The same weights go to all slots; column k weighs member k. */
export interface MixRecord {
  slots: string[];
  members: string[];
}

/** How golden data represent an output that is too wide for them. A row is what the first `axes` axes leave. */
export interface SketchRecord {
  axes: number;
  /** The largest numbers of a row. */
  largest: number;
  /** Numbers of a row at chosen columns. */
  columns: number;
  /** Signed sums over the columns of each remainder by each of these. */
  moduli: number[];
}

/** A topology of head, and the output that it fills. */
export interface HeadRecord {
  graph: string;
  output: string;
  result: Result;
}

/** `rows[i]` is the adapter that row i of the bank holds; null is the base. */
export interface BankRecord {
  ids: string;
  rows: (string | null)[];
  tensors: { name: string }[];
}

/** The bank in two graphs, below and above its first adapter: a row is computed once up to there for all adapters. */
export interface FanoutRecord {
  /** The file of the lower graph. */
  prefix: string;
  /** The input of the upper graph that selects a row of the inputs for each of its rows. */
  rows: string;
  /** The outputs of the lower graph that the upper one takes. */
  values: { name: string; dtype: string; axes: Axis[] }[];
}

export interface FileRecord {
  path: string;
  sha256: string;
  bytes: number;
}

export interface Manifest {
  version: string;
  minimum_onnxruntime: string;
  /** Whether a row's outputs do not depend on the other rows of its call; `sharing.ts` reads this and the next facts. */
  batch_invariant: boolean;
  graphs: Partial<Record<"slots" | "inputs" | "bank" | "fanout", string>>;
  inputs: InputRecord[];
  /** By the name of a dynamic axis; one without a record may have any length. */
  lengths: Record<string, LengthsRecord>;
  /** Whether tokens that a mask hides change nothing in the base. */
  padding_neutral: boolean;
  /** The graphs of slots in which they change something; none is filled by a row that is padded. */
  counts_padding: string[];
  outputs: { name: string; axes: Axis[] }[];
  /** By the output of the base that golden data do not contain in full. */
  sketches: Record<string, SketchRecord>;
  heads: HeadRecord[];
  slots: SlotRecord[];
  adapters: AdapterRecord[];
  bank?: BankRecord | null;
  fanout?: FanoutRecord | null;
  golden: GoldenRecord;
  text: { tokenizer: string; digest: string } | null;
  /** Texts with the ids and the answers that they must give; null without a tokenizer. */
  golden_texts?: string | null;
  /** Requests of several rows with the answer to each row alone; null if there are none. */
  golden_batches?: string | null;
  /** How images or audio become the input; this client takes the input itself. */
  media?: { medium: "image" | "audio"; input: string; processor: string; steps: { op: string }[] | null; unknown?: string; golden?: string } | null;
  /** The adapter that is the base head, and answers where no adapter is chosen. */
  head: string | null;
  /** The number in every adapter file for this graph. */
  model_version: number;
  files: FileRecord[];
  /** The output with a checksum of each slot's tensor: it is compared in golden vectors, and is no part of an answer. */
  checksums?: string | null;
  /** Null where no runs were recorded. */
  recorded?: RecordedRuns | null;
  /** How the base writes texts; not read here. */
  generation?: object | null;
  /** How conversations become prompts; this client continues no prompts. */
  chat?: { templates: string; golden: string } | null;
  /** The derivation of each constant; not read here. */
  derivation?: string | null;
  /** The sha256 of the manifest's own bytes with zeros in place of these 64 digits. */
  checksum?: string;
}

/** The numbers that represent a row of a sketch; sizes in a file are not to be trusted. */
const LARGEST_SKETCH = 2 ** 16;

const MAJOR = "1";
const VERSION = /^\d{1,9}\.\d{1,9}\.\d{1,9}$/;
const PATH_PART = /^[^\u0000-\u001f\u007f/\\:]+$/;

/** The keys of each record; those with `?` are optional. Unknown keys are refused: they might change the answer. */
const KEYS = {
  manifest:
    "version producer minimum_onnxruntime opset base base_precision batch_invariant padding_neutral counts_padding " +
    "graphs inputs lengths outputs heads bank? fanout? sites slots adapters golden text model_version files head? golden_texts? " +
    "golden_batches? media? derivation? recorded? checksums? generation? chat? sketches? checksum?",
  input: "name dtype axes role limit? next?",
  slot: "name site graph parameter axes neutral neutral_value?",
  adapter:
    "name kind parameters onnx_adapter safetensors source base golden task? output? baked? mix? precision?",
  head: "graph output result",
  mix: "slots members",
  bank: "ids rows fillable tensors",
  fanout: "prefix rows values",
  value: "name dtype axes",
  golden: "path cases absolute reference reasons? separation? parts? recorded? written?",
  separation: "least fault outputs weak? nearest?",
  nearest: "adapter separation",
  parts: "path cases parts",
  part: "fault output factor limit",
  recorded: "runtime provider processor features cases",
  task: "type labels? activation? thresholds? input? max_tokens? truncation? tokenizer? pooling? normalised? prefix? processor? widths? query_prefix? document_prefix? template? skiplist?",
  media: "medium input processor digest sampling_rate steps unknown? golden?",
  chat: "templates digest golden roles tools",
  text: "tokenizer digest",
  sketch: "axes largest columns moduli",
  lengths: "minimum? maximum? multiple_of? exceptions?",
  file: "path sha256 bytes",
};

/** Read a manifest; throws a Fault if it breaks the format, or is of a newer version with something unknown. */
export function parseManifest(bytes: Uint8Array, where: string): Manifest {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Manifest;
  } catch (error) {
    throw new Fault({ what: "is not valid JSON", where, found: String(error), fix: "build the bundle again" });
  }
  checkVersion(manifest?.version, where);
  checkKeys(manifest, where);
  manifest.sketches ??= {};
  manifest.files.forEach((file) => checkPath(file.path, where));
  checkNames(manifest, where);
  checkPaths(manifest, where);
  checkProofs(manifest, where);
  checkSketches(manifest, where);
  completeTasks(manifest, where);
  return manifest;
}

function checkVersion(version: unknown, where: string): void {
  if (typeof version !== "string" || !VERSION.test(version)) {
    throw new Fault({ what: "is no manifest of a bundle", where, found: `version ${version}`, expected: "such as `1.0.0`" });
  }
  if (version.split(".")[0] !== MAJOR) {
    const fix = "take a newer client, or build the bundle again";
    throw new Fault({ what: "is of another major version", where, found: version, expected: `${MAJOR}.x`, fix });
  }
}

function checkKeys(manifest: Manifest, where: string): void {
  checkRecord(manifest, "manifest", where);
  checkRecords(manifest.inputs, "input", where);
  checkRecords(manifest.slots, "slot", where);
  checkRecords(manifest.adapters, "adapter", where);
  checkRecords(manifest.heads, "head", where);
  checkRecords(manifest.files, "file", where);
  checkGolden([manifest.golden, ...manifest.adapters.map((record) => record.golden)], where);
  checkRecords(manifest.adapters.flatMap(({ mix }) => mix ?? []), "mix", where);
  checkRecords(manifest.adapters.flatMap(({ task }) => task ?? []), "task", where);
  checkRecords(Object.values(manifest.lengths), "lengths", where);
  checkRecords(Object.values(manifest.sketches ?? {}), "sketch", where);
  if (manifest.bank) checkRecord(manifest.bank, "bank", where);
  if (manifest.fanout) {
    checkRecord(manifest.fanout, "fanout", where);
    checkRecords(manifest.fanout.values, "value", where);
  }
  if (manifest.recorded) checkRecord(manifest.recorded, "recorded", where);
  if (manifest.text) checkRecord(manifest.text, "text", where);
  if (manifest.media) checkRecord(manifest.media, "media", where);
  if (manifest.chat) checkRecord(manifest.chat, "chat", where);
}

function checkGolden(records: GoldenRecord[], where: string): void {
  checkRecords(records, "golden", where);
  const separations = records.flatMap(({ separation }) => separation ?? []);
  checkRecords(separations, "separation", where);
  checkRecords(separations.flatMap(({ nearest }) => nearest ?? []), "nearest", where);
  const parts = records.flatMap((record) => record.parts ?? []);
  checkRecords(parts, "parts", where);
  parts.forEach((record) => checkRecords(record.parts, "part", where));
}

/** Set the defaults of tasks. Throws a Fault if `head` is not an adapter with a task. */
function completeTasks(manifest: Manifest, where: string): void {
  for (const record of manifest.adapters) {
    record.output ??= null;
    record.task = record.task ? parseTask(record.task, `${where}, adapter \`${record.name}\``) : null;
  }
  manifest.head ??= null;
  if (manifest.head === null || manifest.adapters.some(({ name, task }) => task && name === manifest.head)) return;
  throw new Fault({ what: "names a head that is no adapter with a task", where, found: `\`${manifest.head}\`` });
}

function checkRecords(records: unknown, kind: keyof typeof KEYS, where: string): void {
  if (!Array.isArray(records)) throw new Fault({ what: `has no list with a record for each ${kind}`, where });
  records.forEach((record) => checkRecord(record, kind, where));
}

function checkRecord(record: unknown, kind: keyof typeof KEYS, where: string): void {
  const keys = KEYS[kind].split(" ");
  const there = Object.keys(Object(record));
  const unknown = there.filter((key) => !keys.includes(key) && !keys.includes(`${key}?`));
  if (unknown.length) {
    const [what, found] = ["has a key that this client does not know", `\`${unknown.join("`, `")}\` in ${kind}`];
    throw new Fault({ what, where, found, fix: "take a newer client" });
  }
  const missing = keys.filter((key) => !key.endsWith("?") && !there.includes(key));
  if (missing.length) throw new Fault({ what: "lacks what a manifest has", where, found: `no \`${missing.join("`, `")}\`` });
}

/** The lengths of an axis: a number has only that, a name without a record any. */
export function lengthsOf({ lengths }: Manifest, axis: Axis): LengthsRecord {
  return typeof axis === "number" ? { minimum: axis, maximum: axis } : (lengths[axis] ?? {});
}

export function isAllowed(length: number, { minimum = 1, maximum, multiple_of = 1, exceptions = [] }: LengthsRecord): boolean {
  return length >= minimum && length <= (maximum ?? Infinity) && length % multiple_of === 0 && !exceptions.includes(length);
}

/** The smallest allowed length that is not below a number; undefined if there is none. */
export function nextLength(length: number, lengths: LengthsRecord): number | undefined {
  const [step, last] = [lengths.multiple_of ?? 1, lengths.maximum ?? Infinity];
  let found = Math.ceil(Math.max(length, lengths.minimum ?? 1) / step) * step;
  while (lengths.exceptions?.includes(found)) found += step;
  return found <= last ? found : undefined;
}

/** Such as `64 to 512, multiples of 8, but not 72`. */
export function lengthsText({ minimum = 1, maximum, multiple_of = 1, exceptions = [] }: LengthsRecord): string {
  const ends = maximum == null ? `${minimum} or more` : maximum === minimum ? `${minimum}` : `${minimum} to ${maximum}`;
  const step = multiple_of > 1 && maximum !== minimum ? `, multiples of ${multiple_of}` : "";
  return ends + step + (exceptions.length ? `, but not ${exceptions.join(", ")}` : "");
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
  const { inputs, slots, adapters, bank, fanout, files } = manifest;
  const named = (records: { name: string }[]) => records.map((record) => record.name);
  checkUnique("inputs", named(inputs), where);
  checkUnique("slots", named(slots), where);
  checkUnique("adapters", named(adapters).map((name) => name.toLowerCase()), where); // files have these names
  checkUnique("files", files.map((file) => file.path.toLowerCase()), where);
  const ofRows = [...(bank ? [bank.ids, ...named(bank.tensors)] : []), ...(fanout ? [fanout.rows, ...named(fanout.values)] : [])];
  const others = new Set([...named(slots), ...ofRows]);
  const taken = named(inputs).find((name) => others.has(name));
  if (taken !== undefined) {
    throw new Fault({ what: "a tensor of adapters has the name of a data input", where, found: `\`${taken}\`` });
  }
  if (bank) checkBank(bank, adapters, where);
  const known = new Set(named(slots));
  const unknown = adapters.flatMap(({ mix }) => mix?.slots ?? []).find((name) => !known.has(name));
  if (unknown !== undefined) throw new Fault({ what: "has no slot for the weights of a fusion", where, found: `\`${unknown}\`` });
  if (manifest.inputs.some((record) => record.role === "cache")) {
    throw new Fault({ what: "is of a decoder with a cache, which this client does not keep", where });
  }
}

function checkUnique(what: string, names: string[], where: string): void {
  const seen = new Set<string>();
  for (const name of names) {
    if (seen.has(name)) throw new Fault({ what: "a name occurs twice", where, found: `\`${name}\` in ${what}` });
    seen.add(name);
  }
}

/** The base first, then adapters, each once. */
function checkBank({ rows }: BankRecord, adapters: AdapterRecord[], where: string): void {
  const known = new Set<string | null>(adapters.map((record) => record.name));
  const good = rows[0] === null && rows.slice(1).every((row) => known.has(row)) && new Set(rows).size === rows.length;
  if (!good) throw new Fault({ what: "has a bank with rows that are no adapters", where, found: rows.join(", ") });
}

/** Throws a Fault if a file that the manifest names has no hash. */
function checkPaths({ graphs, fanout, adapters, golden, text, golden_texts, golden_batches, media, chat, files }: Manifest, where: string): void {
  const listed = new Set(files.map((file) => file.path));
  const ofAdapters = adapters.flatMap(({ onnx_adapter, safetensors, baked, golden: own }) => {
    return [onnx_adapter, safetensors, baked, own.path, own.parts?.path];
  });
  const ofReaders = [media?.processor, media?.golden, chat?.templates, chat?.golden];
  for (const path of [...Object.values(graphs), fanout?.prefix, ...ofAdapters, golden.path, text?.tokenizer, golden_texts, golden_batches, ...ofReaders]) {
    if (typeof path !== "string" || listed.has(path)) continue;
    throw new Fault({ what: "names a file without a hash", where, found: `\`${path}\``, expected: "one that `files` lists" });
  }
}

/** The numbers of a sketch for each row. */
export function sketchSize({ largest, columns, moduli }: SketchRecord): number {
  return moduli.reduce((sum, modulus) => sum + modulus, largest + columns);
}

/** Only outputs of the base are sketched: a bank may have more classes in those of heads than an adapter. */
function checkSketches({ sketches, outputs, heads }: Manifest, where: string): void {
  const ofHeads = new Set(heads.map((head) => head.output));
  for (const [name, record] of Object.entries(sketches)) {
    const at = `${where}, sketch of \`${name}\``;
    checkSizes(record, at);
    const output = outputs.find((each) => each.name === name && !ofHeads.has(name));
    if (output && record.axes < output.axes.length) continue;
    throw new Fault({ what: "fits no output of the base", where: at });
  }
}

function checkSizes(record: SketchRecord, where: string): void {
  const { axes, largest, columns, moduli } = record;
  if (!Array.isArray(moduli) || !moduli.length) {
    throw new Fault({ what: "has no sums, without which a wrong number may not show", where });
  }
  const within = (size: number, least: number) => Number.isInteger(size) && size >= least && size <= LARGEST_SKETCH;
  const sizes = [largest, columns, sketchSize(record)];
  if (sizes.every((size) => within(size, 0)) && [axes, ...moduli].every((size) => within(size, 1))) return;
  const expected = `at most ${LARGEST_SKETCH} numbers for each row`;
  throw new Fault({ what: "has a size out of range", where, found: JSON.stringify(record), expected });
}

function checkProofs(manifest: Manifest, where: string): void {
  for (const { cases, absolute, path, parts } of [manifest.golden, ...manifest.adapters.map((record) => record.golden)]) {
    if (!cases.length || !Object.keys(absolute).length) {
      throw new Fault({ what: "has golden vectors that prove nothing", where, found: `\`${path}\`` });
    }
    if (parts && (!parts.cases.length || !parts.parts.length)) {
      throw new Fault({ what: "has golden parts that prove nothing", where, found: `\`${parts.path}\`` });
    }
  }
}
