/** Opens a bundle with a provider of ONNX Runtime; WebGPU has to pass the golden data first. */
import { Bundle } from "../../node/src/core/bundle.js";
import { Fault } from "../../node/src/core/fault.js";
import { failure, selfCheck } from "../../node/src/core/selfCheck.js";
import { type Provider, Site } from "./site.js";

export interface Opened {
  bundle: Bundle;
  provider: Provider;
  /** Why another provider than the wanted one is used; null if it is the wanted one. */
  note: string | null;
}

/**
 * Open the bundle at an address.
 *
 * With `webgpu`, golden data run first. If WebGPU is missing or fails, or if its results differ, they run in WebAssembly, which then
 * answers. Throws a Fault if these differ, too, or if the provider is unknown.
 */
export async function openBundle(address: string, wanted: string): Promise<Opened> {
  if (wanted === "wasm") return { bundle: await Bundle.open(await Site.open(address, wanted)), provider: wanted, note: null };
  if (wanted !== "webgpu") throw new Fault({ what: "is not a provider", where: "`provider`", found: wanted, expected: "`wasm` or `webgpu`" });
  try {
    return { bundle: await proven(address, wanted), provider: wanted, note: null };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { bundle: await proven(address, "wasm"), provider: "wasm", note: `WebGPU is not used: ${reason}` };
  }
}

async function proven(address: string, provider: Provider): Promise<Bundle> {
  if (provider === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Fault({ what: "this browser has no WebGPU adapter" });
  const bundle = await Bundle.open(await Site.open(address, provider));
  const findings = await selfCheck(bundle, { texts: false }); // tokens do not depend on the provider
  const wrong = findings.length ? failure(findings) : { what: "has no graph that a browser can run", where: address };
  if (wrong) throw new Fault(wrong);
  return bundle;
}
