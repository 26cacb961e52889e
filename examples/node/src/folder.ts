/** A bundle in a folder. */
import { readFile, realpath } from "node:fs/promises";
import { join, relative, sep } from "node:path";

import { InferenceSession } from "onnxruntime-node";

import type { Place } from "./core/bundle.js";
import { Fault } from "./core/fault.js";

export class Folder implements Place {
  constructor(readonly name: string) {}

  async read(path: string): Promise<Uint8Array> {
    await this.checkInside(path);
    return readFile(join(this.name, path));
  }

  async open(graph: string): Promise<InferenceSession> {
    await this.checkInside(graph);
    return InferenceSession.create(join(this.name, graph), { logSeverityLevel: 3, intraOpNumThreads: 1 });
  }

  /** Throws a Fault if the file is missing, or is a link that leads out of the bundle. */
  private async checkInside(path: string): Promise<void> {
    const where = join(this.name, path);
    let real: string;
    try {
      real = await realpath(where);
    } catch {
      throw new Fault({ what: "cannot be read", where, expected: "a file", fix: "copy the whole bundle again" });
    }
    if (relative(await realpath(this.name), real).split(sep)[0] === "..") {
      const fix = "put the file itself in its place";
      throw new Fault({ what: "is a link that leads out of the bundle", where, found: real, fix });
    }
  }
}
