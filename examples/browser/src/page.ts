/** The page: choose an adapter, type a text, see the labels and how long it took. */
import type { Tensor } from "onnxruntime-common";

import { Bundle, type Choice } from "../../node/src/core/bundle.js";
import { Bank, FedAdapters } from "../../node/src/core/runners.js";
import { selfCheck } from "../../node/src/core/selfCheck.js";
import { type Scored, TextInputs, softmax } from "../../node/src/core/text.js";
import { Site } from "./site.js";
import { bars, choice, element, findingsTable, show, showError } from "./view.js";

const ADDRESS = new URLSearchParams(location.search).get("bundle") ?? "bundle";

class Page {
  private chosen: Choice;
  private bank: Bank | null = null;
  private waiting: Promise<void> = Promise.resolve();

  private constructor(
    private readonly bundle: Bundle,
    private readonly texts: TextInputs,
    private readonly fed: FedAdapters,
  ) {
    this.chosen = bundle.choices[1] ?? null;
  }

  static async open(address: string): Promise<Page> {
    const bundle = await Bundle.open(new Site(address));
    return new Page(bundle, await TextInputs.open(bundle), await FedAdapters.open(bundle));
  }

  start(): void {
    for (const name of this.bundle.choices.slice(1)) this.offer(name!, name === this.chosen);
    element("text").addEventListener("input", () => this.later(() => this.classify()));
    this.button("all", () => this.classifyWithAll());
    this.button("check", () => this.check());
    const file = element<HTMLInputElement>("file");
    file.disabled = false;
    file.addEventListener("change", () => this.later(() => this.loadFile(file.files?.[0])));
    this.later(() => this.classify());
  }

  private offer(name: string, selected: boolean): void {
    const onChange = () => {
      this.chosen = name;
      this.later(() => this.classify());
    };
    element("adapters").append(choice(name, selected, onChange));
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
    const inputs = this.texts.batch([element<HTMLTextAreaElement>("text").value]);
    const outputs = await this.timed(() => this.fed.run(inputs, this.chosen));
    show(bars(`${this.chosen}`, this.classes(outputs, this.chosen, 0)));
  }

  /** The same text once for each adapter, as rows of one batch. */
  private async classifyWithAll(): Promise<void> {
    this.bank ??= await Bank.open(this.bundle);
    const choices = this.bundle.choices.slice(1);
    const text = element<HTMLTextAreaElement>("text").value;
    const inputs = this.texts.batch(choices.map(() => text));
    const outputs = await this.timed(() => this.bank!.run(inputs, choices));
    show(...choices.map((name, row) => bars(`${name}`, this.classes(outputs, name, row))));
  }

  private async check(): Promise<void> {
    show("Computing …");
    show(findingsTable(await selfCheck(this.bundle)));
  }

  private async loadFile(file: File | undefined): Promise<void> {
    if (!file) return;
    const name = file.name.replace(/\.safetensors$/, "");
    this.fed.load(name, new Uint8Array(await file.arrayBuffer()));
    this.offer(name, false);
  }

  private classes(outputs: Record<string, unknown>, name: Choice, row: number): Scored[] {
    const { adapters, outputs: known } = this.bundle.manifest;
    const record = adapters.find((each) => each.name === name);
    const logits = outputs[record?.output ?? known.at(-1)!.name] as Tensor;
    const width = logits.dims[1]!;
    const own = (logits.data as Float32Array).subarray(row * width, (row + 1) * width);
    return softmax(own, record?.labels ?? Array.from(own, (_, at) => `class ${at}`));
  }

  private async timed<T>(work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    const result = await work();
    element("latency").textContent = `${(performance.now() - start).toFixed(1)} ms`;
    return result;
  }
}

try {
  const page = await Page.open(ADDRESS);
  page.start();
  element("state").textContent = `${ADDRESS}: ready`;
} catch (error) {
  element("state").textContent = "The bundle cannot be used.";
  showError(error);
}
