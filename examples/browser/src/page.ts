/** The page: choose an adapter, type a text, see the answer and the latency. */
import { inputRows } from "../../node/src/core/arrays.js";
import type { Choice } from "../../node/src/core/bundle.js";
import { Fault } from "../../node/src/core/fault.js";
import { type Options, rowsOf } from "../../node/src/core/options.js";
import { failure, selfCheck } from "../../node/src/core/selfCheck.js";
import { type Chosen, Service } from "../../node/src/core/service.js";
import type { Task } from "../../node/src/core/task.js";
import type { Asked, TextAnswer } from "../../node/src/core/text.js";
import { type Opened, openBundle } from "./opening.js";
import type { Provider } from "./site.js";
import { answerBlock, choice, element, errorLine, findingsTable, show, showError } from "./view.js";

const OPTIONS = new URLSearchParams(location.search);
const PLACES = { wasm: "in WebAssembly", webgpu: "on WebGPU, which passed this bundle's golden data" };

/** A request of another script of the page: rows as texts, or as nested lists of a batch by input, and their options. */
type Request = Options & { texts?: Asked[]; inputs?: unknown };

declare global {
  interface Window {
    /** The interface for other scripts of the page. */
    bundle?: {
      provider: Provider;
      /** Why another provider than the wanted one is used. */
      note: string | null;
      run(request: Request): Promise<TextAnswer[]>;
      load(name: string, bytes: Uint8Array): Promise<void>;
    };
  }
}

class Page {
  private chosen: Choice;
  private waiting: Promise<void> = Promise.resolve();

  private readonly service: Service;

  constructor(private readonly opened: Opened) {
    this.service = new Service(opened.bundle);
    this.chosen = this.service.bundle.choices.at(1) ?? null;
  }

  /** Show the first answer, then enable the controls. */
  async start(): Promise<void> {
    if (this.service.bundle.manifest.text) await this.offerTexts();
    else show("This bundle reads no texts. You can check it against its golden vectors, and other scripts can call it.");
    this.button("check", () => this.check());
    const { provider, note } = this.opened;
    window.bundle = { provider, note, run: (request) => this.run(request), load: (name, bytes) => this.load(name, bytes) };
    element("state").textContent = `Tokenizer, base and adapters run here, ${PLACES[provider]}. Nothing leaves this page.`;
    element("note").textContent = note;
    document.body.dataset["ready"] = "";
  }

  private async offerTexts(): Promise<void> {
    const { manifest, choices } = this.service.bundle;
    for (const name of choices) this.offer(name);
    await this.later(() => this.classify());
    for (const id of ["text", "pair"]) element(id).addEventListener("input", () => this.later(() => this.classify()));
    if (manifest.adapters.length) this.button("all", () => this.classifyWithAll());
    const file = element<HTMLInputElement>("file");
    file.disabled = false;
    file.addEventListener("change", () => this.later(() => this.loadFile(file)));
  }

  private async run({ texts, inputs, ...options }: Request): Promise<TextAnswer[]> {
    const asked = texts ?? inputRows(inputs, this.service.bundle.manifest).map((row) => ({ inputs: row }));
    return this.service.answer(rowsOf(options, asked));
  }

  private offer(name: Choice): void {
    const onChange = () => {
      this.chosen = name;
      this.later(() => this.classify());
    };
    element("adapters").append(choice(name ?? "no adapter", name === this.chosen, onChange));
  }

  private button(id: string, work: () => Promise<void>): void {
    const button = element<HTMLButtonElement>(id);
    button.disabled = false;
    button.addEventListener("click", () => this.later(work));
  }

  /** Work in sequence: a session in WebAssembly runs one call at a time. */
  private later(work: () => Promise<void>): Promise<void> {
    return (this.waiting = this.waiting.then(work).catch(showError));
  }

  private async classify(): Promise<void> {
    await this.answer([{ adapter: this.chosen }]);
  }

  /** The same text once for each adapter, as rows of one request. */
  private async classifyWithAll(): Promise<void> {
    await this.answer(this.service.bundle.choices.slice(1).map((adapter) => ({ adapter })));
  }

  /** Answer what is typed, as the task of each row's adapter takes it. */
  private async answer(rows: Chosen[]): Promise<void> {
    const tasks = await Promise.all(rows.map((row) => this.service.task(row)));
    element("pair").hidden = !tasks.some((task) => task?.input === "pair");
    const read = await this.service.read(rows.map((row, at) => ({ ...typed(tasks[at]!), ...row })));
    const [start, before] = [performance.now(), this.service.calls];
    const found = await this.service.answerRead(read);
    const [took, calls] = [performance.now() - start, this.service.calls - before];
    const lengths = read.flatMap(({ text }) => text?.rows.map(({ ids }) => ids.length) ?? []);
    const shown = `${lengths.length > 1 ? `${lengths.length} rows in ` : ""}${calls > 1 ? `${calls} calls` : "one call"}`;
    element("latency").textContent = `${Math.max(...lengths)} tokens, ${shown}: ${took.toFixed(1)} ms`;
    show(...found.map((answer, row) => answerBlock(rows[row]!.adapter ?? "no adapter", answer)));
  }

  private async check(): Promise<void> {
    show("Computing …");
    element("latency").textContent = "";
    const findings = await selfCheck(this.service.bundle);
    const wrong = failure(findings);
    show(findingsTable(findings), ...(wrong ? [errorLine(new Fault(wrong))] : []));
  }

  /** Load an adapter from a file of the user, and choose it. */
  private async loadFile(input: HTMLInputElement): Promise<void> {
    const file = input.files?.[0];
    if (!file) return;
    const name = file.name.replace(/\.onnx_adapter$/, "");
    const bytes = new Uint8Array(await file.arrayBuffer());
    input.value = ""; // so that the same file can be chosen again
    await this.load(name, bytes);
    await this.classify();
  }

  private async load(name: string, bytes: Uint8Array): Promise<void> {
    await this.service.load(name, bytes);
    this.chosen = name;
    this.offer(name);
  }
}

/** The text of the first field. The second field has the second text of a pair, or a choice on each line. */
function typed(task: Task | null): Asked {
  const [text, second] = ["text", "pair"].map((id) => element<HTMLTextAreaElement>(id).value) as [string, string];
  if (task?.input !== "pair") return { text };
  if (task.type !== "multiple_choice") return { text, pair: second };
  return { text, choices: second.split("\n").filter((line) => line.trim()) };
}

try {
  await new Page(await openBundle(OPTIONS.get("bundle") ?? "bundle", OPTIONS.get("provider") ?? "wasm")).start();
} catch (error) {
  element("state").textContent = "The bundle cannot be used.";
  showError(error);
  document.body.dataset["failed"] = "";
}
