/** What other programs may use: `import { openBundle } from "adapter-export-runtime"`. */
import { Bundle } from "./core/bundle.js";
import { type Options, Service } from "./core/service.js";
import { Folder } from "./folder.js";

export type { Answer } from "./core/answers.js";
export { parseInputs } from "./core/arrays.js";
export { Bundle, type Choice } from "./core/bundle.js";
export { Fault } from "./core/fault.js";
export type { Manifest } from "./core/manifest.js";
export type { Inputs } from "./core/request.js";
export type { PrefixCounts } from "./core/rows.js";
export { failure, selfCheck } from "./core/selfCheck.js";
export { type Call, type Options, Service } from "./core/service.js";
export type { Task } from "./core/task.js";
export type { Asked, TextAnswer } from "./core/text.js";
export { Folder } from "./folder.js";

/** Open a bundle in a folder; throws a Fault if it is not whole. */
export async function openBundle(folder: string, options: Options = {}): Promise<Service> {
  const bundle = await Bundle.open(new Folder(folder));
  await bundle.verify();
  return new Service(bundle, options);
}
