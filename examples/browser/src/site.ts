/** A bundle on a web server. */
import type { InferenceSession } from "onnxruntime-common";

import { type Bundle, type Measured, type Place, type Runtime, measured } from "../../node/src/core/bundle.js";
import { Fault } from "../../node/src/core/fault.js";

export type Provider = "wasm" | "webgpu";

const BUILDS = { wasm: () => import("onnxruntime-web/wasm"), webgpu: () => import("onnxruntime-web/webgpu") };

/** ONNX Runtime warns once for each tensor of a bank. */
const ERRORS = 3;

type Build = typeof import("onnxruntime-web/wasm");

/** A page loads one build, of tens of megabytes; that for WebGPU has WebAssembly, too. */
let build: Promise<Build> | null = null;

export class Site implements Place {
  private readonly sessions = new Map<string, Promise<InferenceSession>>();

  private constructor(
    private readonly build: Build,
    readonly name: string,
    readonly runtime: Runtime & { provider: Provider },
  ) {}

  /** @param name the address of the bundle's folder, without a slash at the end. */
  static async open(name: string, provider: Provider): Promise<Site> {
    const loaded = await (build ??= BUILDS[provider]());
    const { env } = loaded;
    env.wasm.wasmPaths = "./";
    env.wasm.numThreads = 1; // more need a page that is cross-origin isolated
    env.logLevel = "error";
    return new Site(loaded, name, { version: env.versions.web ?? "unknown", provider });
  }

  async read(path: string): Promise<Uint8Array> {
    const address = `${this.name}/${path.split("/").map(encodeURIComponent).join("/")}`;
    const response = await fetch(address).catch((error: unknown) => String(error));
    if (typeof response === "string" || !response.ok) {
      const found = typeof response === "string" ? response : `status ${response.status}, ${(await response.text()).slice(0, 100)}`;
      throw new Fault({ what: "is missing from the bundle", where: address, found, fix: "copy the whole bundle to the server again" });
    }
    return new Uint8Array(await response.arrayBuffer());
  }

  async measure(path: string): Promise<Measured> {
    return measured(await this.read(path));
  }

  /** Open a graph, once: the session that answers is the one that golden data were compared with. */
  open(graph: string, weights: string[], files: Bundle): Promise<InferenceSession> {
    if (!this.sessions.has(graph)) this.sessions.set(graph, this.create(graph, weights, files));
    return this.sessions.get(graph)!;
  }

  private async create(graph: string, weights: string[], files: Bundle): Promise<InferenceSession> {
    const externalData = [];
    for (const path of weights) externalData.push({ path, data: await files.read(path) });
    try {
      const options = { externalData, executionProviders: [this.runtime.provider], logSeverityLevel: ERRORS } as const;
      return await this.build.InferenceSession.create(await files.read(graph), options);
    } catch (error) {
      if (error instanceof Fault) throw error;
      throw new Fault({ what: "ONNX Runtime cannot load the graph", where: `${this.name}/${graph}`, found: String(error) });
    }
  }
}
