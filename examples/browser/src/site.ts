/** A bundle on a web server. */
import { InferenceSession, env } from "onnxruntime-web/wasm";

import { type Bundle, type Measured, type Place, type Runtime, measured } from "../../node/src/core/bundle.js";
import { Fault } from "../../node/src/core/fault.js";

const PROVIDER = "wasm";

env.wasm.wasmPaths = "./";
env.wasm.numThreads = 1; // more need a page that is cross-origin isolated
env.logLevel = "error";

export class Site implements Place {
  readonly runtime: Runtime = { version: env.versions.web ?? "unknown", provider: PROVIDER };

  /** @param name the address of the bundle's folder, without a slash at the end. */
  constructor(readonly name: string) {}

  async read(path: string): Promise<Uint8Array> {
    const address = `${this.name}/${path.split("/").map(encodeURIComponent).join("/")}`;
    const response = await fetch(address).catch((error: unknown) => String(error));
    if (typeof response === "string" || !response.ok) {
      const found = typeof response === "string" ? response : `status ${response.status}, ${(await response.text()).slice(0, 100)}`;
      throw new Fault({ what: "is missing in the bundle", where: address, found, fix: "copy the whole bundle to the server again" });
    }
    return new Uint8Array(await response.arrayBuffer());
  }

  async measure(path: string): Promise<Measured> {
    return measured(await this.read(path));
  }

  async open(graph: string, weights: string[], files: Bundle): Promise<InferenceSession> {
    const externalData = [];
    for (const path of weights) externalData.push({ path, data: await files.read(path) });
    try {
      return await InferenceSession.create(await files.read(graph), { externalData, executionProviders: [PROVIDER] });
    } catch (error) {
      if (error instanceof Fault) throw error;
      throw new Fault({ what: "ONNX Runtime cannot load the graph", where: `${this.name}/${graph}`, found: String(error) });
    }
  }
}
