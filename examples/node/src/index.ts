/** The package's interface: `import { openBundle } from "adapter-export-runtime"`. */
import { Bundle } from "./core/bundle.js";
import { type Options, Service } from "./core/service.js";
import { Folder } from "./folder.js";

export type { Weights } from "./core/adapters.js";
export type { Answer, Context } from "./core/answers.js";
export { inputRows, parseInputs } from "./core/arrays.js";
export { Bundle, type Choice } from "./core/bundle.js";
export { Fault } from "./core/fault.js";
export type { Manifest } from "./core/manifest.js";
export type { Inputs } from "./core/request.js";
export type { PrefixCounts } from "./core/rows.js";
export { failure, selfCheck } from "./core/selfCheck.js";
export { type Arrays, type Chosen, type Options, type Row, Service } from "./core/service.js";
export type { Task } from "./core/task.js";
export type { Asked, TextAnswer } from "./core/text.js";
export { Folder } from "./folder.js";

/** Open a bundle in a folder. Throws a Fault if a file is missing, changed or not listed in the manifest. */
export async function openBundle(folder: string, options: Options = {}): Promise<Service> {
  const bundle = await Bundle.open(new Folder(folder));
  await bundle.verify();
  return new Service(bundle, options);
}
