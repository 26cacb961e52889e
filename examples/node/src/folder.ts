/** A bundle in a folder. */
import "./telemetry.js";

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile, readdir, realpath, stat } from "node:fs/promises";
import { join, relative, sep } from "node:path";
import { pipeline } from "node:stream/promises";

import { InferenceSession } from "onnxruntime-node";

import type { Bundle, Measured, Place } from "./core/bundle.js";
import { Fault } from "./core/fault.js";

export class Folder implements Place {
  constructor(readonly name: string) {}

  async read(path: string): Promise<Uint8Array> {
    return readFile(await this.checked(path));
  }

  async measure(path: string): Promise<Measured> {
    const file = await this.checked(path);
    const hash = createHash("sha256");
    await pipeline(createReadStream(file), hash);
    return { bytes: (await stat(file)).size, sha256: hash.digest("hex") };
  }

  async open(graph: string, weights: string[], files: Bundle): Promise<InferenceSession> {
    for (const path of [graph, ...weights]) await files.check(path);
    try {
      return await InferenceSession.create(join(this.name, graph), { logSeverityLevel: 3, intraOpNumThreads: 1 });
    } catch (error) {
      throw new Fault({ what: "ONNX Runtime cannot load the graph", where: join(this.name, graph), found: String(error) });
    }
  }

  async list(): Promise<string[]> {
    const entries = await readdir(this.name, { recursive: true, withFileTypes: true });
    const files = entries.filter((entry) => !entry.isDirectory());
    return files.map((entry) => relative(this.name, join(entry.parentPath, entry.name)).split(sep).join("/"));
  }

  /** Where a file lies; throws a Fault if it is missing, or is a link that leads out of the bundle. */
  private async checked(path: string): Promise<string> {
    const where = join(this.name, path);
    const real = await realpath(where).catch(() => null);
    if (real === null || !(await stat(real)).isFile()) {
      throw new Fault({ what: "is missing in the bundle", where, expected: "a file", fix: "copy the whole bundle again" });
    }
    if (relative(await realpath(this.name), real).split(sep)[0] === "..") {
      const fix = "put the file itself in its place";
      throw new Fault({ what: "is a link that leads out of the bundle", where, found: real, fix });
    }
    return real;
  }
}
