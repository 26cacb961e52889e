/** The page: choose an adapter, type a text, see the labels and how long it took. */
import { answers } from "../../node/src/core/answers.js";
import { Bundle, type Choice } from "../../node/src/core/bundle.js";
import { Bank, FedAdapters, type Result } from "../../node/src/core/runners.js";
import { selfCheck } from "../../node/src/core/selfCheck.js";
import { TextInputs } from "../../node/src/core/text.js";
import { Site } from "./site.js";
import { answerBlock, choice, element, findingsTable, show, showError } from "./view.js";

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
    this.chosen = bundle.choices.at(1) ?? null;
  }

  static async open(address: string): Promise<Page> {
    const bundle = await Bundle.open(new Site(address));
    return new Page(bundle, await TextInputs.open(bundle), await FedAdapters.open(bundle));
  }

  start(): void {
    for (const name of this.bundle.choices) this.offer(name);
    element("text").addEventListener("input", () => this.later(() => this.classify()));
    if (this.bundle.manifest.graphs.bank && this.bundle.manifest.batch_invariant) this.button("all", () => this.classifyWithAll());
    this.button("check", () => this.check());
    const file = element<HTMLInputElement>("file");
    file.disabled = false;
    file.addEventListener("change", () => this.later(() => this.loadFile(file)));
    this.later(() => this.classify());
  }

  private offer(name: Choice): void {
    const onChange = () => {
      this.chosen = name;
      this.later(() => this.classify());
    };
    element("adapters").append(choice(name ?? "none", name === this.chosen, onChange));
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
    const result = await this.timed(() => this.fed.run(inputs, this.chosen));
    show(...answers(result, inputs).map((answer) => answerBlock(this.chosen ?? "no adapter", answer)));
  }

  /** The same text once for each adapter, as rows of one batch. */
  private async classifyWithAll(): Promise<void> {
    this.bank ??= await Bank.open(this.bundle);
    const choices = this.bundle.bank.rows.slice(1);
    const text = element<HTMLTextAreaElement>("text").value;
    const inputs = this.texts.batch(choices.map(() => text));
    const result = await this.timed(() => this.bank!.run(inputs, choices));
    show(...answers(result, inputs).map((answer, row) => answerBlock(`${choices[row]}`, answer)));
  }

  private async check(): Promise<void> {
    show("Computing …");
    show(findingsTable(await selfCheck(this.bundle)));
  }

  /** Load an adapter from a file of the user, and choose it. */
  private async loadFile(input: HTMLInputElement): Promise<void> {
    const file = input.files?.[0];
    if (!file) return;
    const name = file.name.replace(/\.onnx_adapter$/, "");
    input.value = ""; // so that the same file can be chosen again
    this.fed.load(name, new Uint8Array(await file.arrayBuffer()));
    this.chosen = name;
    this.offer(name);
    await this.classify();
  }

  private async timed(work: () => Promise<Result>): Promise<Result> {
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
