/** A bundle in a folder. */
import "./telemetry.js";

import { createHash } from "node:crypto";
import { createReadStream, existsSync, mkdtempSync, rmSync } from "node:fs";
import { open as openFile, readFile, readdir, realpath, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative, sep } from "node:path";

import { InferenceSession, env } from "onnxruntime-node";

import type { Bundle, Measured, Place, Runtime } from "./core/bundle.js";
import { Fault } from "./core/fault.js";

/** Optimizers that slow a graph down. Runs are recorded without them, and with them outputs are rounded otherwise. */
const LEFT_OUT = "SkipLayerNormFusion;BiasGeluFusion";

const OPTIONS: InferenceSession.SessionOptions = {
  logSeverityLevel: 3,
  intraOpNumThreads: 1,
  executionProviders: ["cpu"],
  extra: { optimization: { disable_specified_optimizers: LEFT_OUT } },
};

export class Folder implements Place {
  readonly runtime: Runtime = { version: env.versions.node ?? "unknown", provider: "CPUExecutionProvider" };
  /** The folder with the copies that ONNX Runtime maps; removed at the end of the process. */
  private copies: string | undefined;

  constructor(readonly name: string) {}

  async read(path: string): Promise<Uint8Array> {
    return readFile(await this.checked(path));
  }

  /** Graphs and their weights are copied while they are hashed, so that `open` opens the bytes that were measured. */
  async measure(path: string): Promise<Measured> {
    const [file, hash] = [await this.checked(path), createHash("sha256")];
    const copy = path.includes("/") ? null : await openFile(this.copyOf(path), "w").catch(noRoom);
    let bytes = 0;
    try {
      for await (const block of createReadStream(file)) {
        hash.update(block);
        bytes += block.length;
        await copy?.appendFile(block).catch(noRoom);
      }
    } finally {
      await copy?.close();
    }
    return { bytes, sha256: hash.digest("hex") };
  }

  async open(graph: string, weights: string[], files: Bundle): Promise<InferenceSession> {
    for (const path of [graph, ...weights]) await files.check(path);
    try {
      return await InferenceSession.create(this.copyOf(graph), OPTIONS);
    } catch (error) {
      throw new Fault({ what: "ONNX Runtime cannot load the graph", where: join(this.name, graph), found: String(error) });
    }
  }

  async list(): Promise<string[]> {
    const entries = await readdir(this.name, { recursive: true, withFileTypes: true });
    const files = entries.filter((entry) => !entry.isDirectory());
    return files.map((entry) => relative(this.name, join(entry.parentPath, entry.name)).split(sep).join("/"));
  }

  private copyOf(path: string): string {
    return join((this.copies ??= privateFolder()), path);
  }

  /** The real path of a file. Throws a Fault if it is missing, or is a link to a file outside the bundle. */
  private async checked(path: string): Promise<string> {
    const where = join(this.name, path);
    const real = await realpath(where).catch(() => null);
    if (real === null || !(await stat(real)).isFile()) {
      throw new Fault({ what: "is missing from the bundle", where, expected: "a file", fix: "copy the whole bundle again" });
    }
    if (relative(await realpath(this.name), real).split(sep)[0] === "..") {
      const fix = "replace the link by the file";
      throw new Fault({ what: "is a link to a file outside the bundle", where, found: real, fix });
    }
    return real;
  }
}

/** A new folder on disk: `/tmp` may be in memory. */
function privateFolder(): string {
  const parent = !process.env.TMPDIR && existsSync("/var/tmp") ? "/var/tmp" : tmpdir();
  const made = mkdtempSync(join(parent, "adapter-bundle-"));
  process.once("exit", () => rmSync(made, { recursive: true, force: true }));
  return made;
}

function noRoom(error: unknown): never {
  const fix = "set the variable TMPDIR to a folder with room";
  throw new Fault({ what: "there is no place for a private copy of what runs", found: String(error), fix });
}
