/** The page: choose an adapter, type a text, see the labels and how long it took. */
import type { Answer } from "../../node/src/core/answers.js";
import { parseInputs } from "../../node/src/core/arrays.js";
import { Bundle, type Choice } from "../../node/src/core/bundle.js";
import { Fault } from "../../node/src/core/fault.js";
import type { Inputs } from "../../node/src/core/request.js";
import { selfCheck } from "../../node/src/core/selfCheck.js";
import { type Call, Service } from "../../node/src/core/service.js";
import { TextInputs } from "../../node/src/core/text.js";
import { Site } from "./site.js";
import { answerBlock, choice, element, findingsTable, show, showError } from "./view.js";

const ADDRESS = new URLSearchParams(location.search).get("bundle") ?? "bundle";

/** A call of another script of the page: rows, as texts or as nested lists by name, and who runs them. */
type Request = Call & { texts?: string[]; inputs?: unknown };

declare global {
  interface Window {
    /** What other scripts of the page may call. */
    bundle?: { run(request: Request): Promise<Answer[]>; load(name: string, bytes: Uint8Array): Promise<void> };
  }
}

class Page {
  private chosen: Choice;
  private waiting: Promise<void> = Promise.resolve();

  private constructor(
    private readonly service: Service,
    private readonly texts: TextInputs | null,
  ) {
    this.chosen = service.bundle.choices.at(1) ?? null;
  }

  static async open(address: string): Promise<Page> {
    const bundle = await Bundle.open(new Site(address));
    return new Page(new Service(bundle), bundle.manifest.text ? await TextInputs.open(bundle) : null);
  }

  /** Show the first answer, and only then what can be asked. */
  async start(): Promise<void> {
    if (this.texts) await this.offerTexts();
    else show("This bundle reads no texts. It can be held against its golden vectors, and other scripts can call it.");
    this.button("check", () => this.check());
    window.bundle = { run: (request) => this.run(request), load: (name, bytes) => this.load(name, bytes) };
    document.body.dataset["ready"] = "";
  }

  private async offerTexts(): Promise<void> {
    const { manifest, choices } = this.service.bundle;
    await this.classify();
    for (const name of choices) this.offer(name);
    element("text").addEventListener("input", () => this.later(() => this.classify()));
    if (manifest.graphs.bank && manifest.batch_invariant && manifest.adapters.length) {
      this.button("all", () => this.classifyWithAll());
    }
    const file = element<HTMLInputElement>("file");
    file.disabled = false;
    file.addEventListener("change", () => this.later(() => this.loadFile(file)));
  }

  private async run({ texts, inputs, ...call }: Request): Promise<Answer[]> {
    return this.service.run(this.inputsOf(texts, inputs), call);
  }

  private inputsOf(texts: string[] | undefined, lists: unknown): Inputs {
    return texts ? this.batch(texts) : parseInputs(lists, this.service.bundle.manifest);
  }

  private batch(texts: string[]): Inputs {
    if (!this.texts) throw new Fault({ what: "the bundle has no tokenizer", fix: "give arrays" });
    return this.texts.batch(texts);
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

  /** One thing after the other: a session in WebAssembly runs one call at a time. */
  private later(work: () => Promise<void>): void {
    this.waiting = this.waiting.then(work).catch(showError);
  }

  private async classify(): Promise<void> {
    await this.answer([element<HTMLTextAreaElement>("text").value], { adapter: this.chosen }, [this.chosen ?? "no adapter"]);
  }

  /** The same text once for each adapter, as rows of one batch. */
  private async classifyWithAll(): Promise<void> {
    const adapters = this.service.bundle.bank.rows.slice(1);
    const text = element<HTMLTextAreaElement>("text").value;
    await this.answer(adapters.map(() => text), { adapters }, adapters.map(String));
  }

  private async answer(texts: string[], call: Call, titles: string[]): Promise<void> {
    const inputs = this.batch(texts);
    await this.service.prepare(call);
    const start = performance.now();
    const found = await this.service.run(inputs, call);
    const took = performance.now() - start;
    const rows = texts.length > 1 ? `${texts.length} rows in one call` : "one call";
    element("latency").textContent = `${inputs["input_ids"]!.dims[1]} tokens, ${rows}: ${took.toFixed(1)} ms`;
    show(...found.map((answer, row) => answerBlock(titles[row]!, answer)));
  }

  private async check(): Promise<void> {
    show("Computing …");
    element("latency").textContent = "";
    show(findingsTable(await selfCheck(this.service.bundle)));
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

try {
  const page = await Page.open(ADDRESS);
  await page.start();
  element("state").textContent = "Tokenizer, base and adapters run here, in WebAssembly. Nothing leaves this page.";
} catch (error) {
  element("state").textContent = "The bundle cannot be used.";
  showError(error);
}
