/** The page: choose an adapter, type a text, see the labels and how long it took. */
import { parseInputs } from "../../node/src/core/arrays.js";
import { Bundle, type Choice } from "../../node/src/core/bundle.js";
import { Fault } from "../../node/src/core/fault.js";
import { failure, selfCheck } from "../../node/src/core/selfCheck.js";
import { type Call, Service } from "../../node/src/core/service.js";
import type { Task } from "../../node/src/core/task.js";
import type { Asked, TextAnswer } from "../../node/src/core/text.js";
import { Site } from "./site.js";
import { answerBlock, choice, element, errorLine, findingsTable, show, showError } from "./view.js";

const ADDRESS = new URLSearchParams(location.search).get("bundle") ?? "bundle";

/** A call of another script of the page: rows, as texts or as nested lists by name, and who runs them. */
type Request = Call & { texts?: Asked[]; inputs?: unknown };

declare global {
  interface Window {
    /** What other scripts of the page may call. */
    bundle?: { run(request: Request): Promise<TextAnswer[]>; load(name: string, bytes: Uint8Array): Promise<void> };
  }
}

class Page {
  private chosen: Choice;
  private waiting: Promise<void> = Promise.resolve();

  private constructor(private readonly service: Service) {
    this.chosen = service.bundle.choices.at(1) ?? null;
  }

  static async open(address: string): Promise<Page> {
    return new Page(new Service(await Bundle.open(new Site(address))));
  }

  /** Show the first answer, and only then what can be asked. */
  async start(): Promise<void> {
    if (this.service.bundle.manifest.text) await this.offerTexts();
    else show("This page reads texts alone, and this bundle reads none. It can be held against its golden vectors, and other scripts can call it.");
    this.button("check", () => this.check());
    window.bundle = { run: (request) => this.run(request), load: (name, bytes) => this.load(name, bytes) };
    document.body.dataset["ready"] = "";
  }

  private async offerTexts(): Promise<void> {
    const { manifest, choices } = this.service.bundle;
    for (const name of choices) this.offer(name);
    await this.later(() => this.classify());
    for (const id of ["text", "pair"]) element(id).addEventListener("input", () => this.later(() => this.classify()));
    if (manifest.graphs.bank && manifest.batch_invariant && manifest.adapters.length) {
      this.button("all", () => this.classifyWithAll());
    }
    const file = element<HTMLInputElement>("file");
    file.disabled = false;
    file.addEventListener("change", () => this.later(() => this.loadFile(file)));
  }

  private async run({ texts, inputs, ...call }: Request): Promise<TextAnswer[]> {
    if (texts) return this.service.answer(texts, call);
    return this.service.run(parseInputs(inputs, this.service.bundle.manifest), call);
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
  private later(work: () => Promise<void>): Promise<void> {
    return (this.waiting = this.waiting.then(work).catch(showError));
  }

  private async classify(): Promise<void> {
    await this.answer({ adapter: this.chosen }, [this.chosen ?? "no adapter"]);
  }

  /** The same text once for each adapter, as rows of one batch. */
  private async classifyWithAll(): Promise<void> {
    const adapters = this.service.bundle.bank.rows.slice(1);
    await this.answer({ adapters }, adapters.map(String));
  }

  /** What is typed, as the task of each row's adapter takes it. */
  private async answer(call: Call, titles: string[]): Promise<void> {
    const tasks = await Promise.all(titles.map((_, row) => this.service.task(call, row)));
    element("pair").hidden = !tasks.some((task) => task?.input === "pair");
    const read = await this.service.read(tasks.map(typed), call);
    const start = performance.now();
    const found = await this.service.answerRead(read, call);
    const took = performance.now() - start;
    const lengths = read.flatMap(({ rows }) => rows.map(({ ids }) => ids.length));
    const calls = new Set(lengths).size;
    const rows = `${lengths.length > 1 ? `${lengths.length} rows in ` : ""}${calls > 1 ? `${calls} calls` : "one call"}`;
    element("latency").textContent = `${Math.max(...lengths)} tokens, ${rows}: ${took.toFixed(1)} ms`;
    show(...found.map((answer, row) => answerBlock(titles[row]!, answer)));
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

/** The second field holds the second text of a pair, or in each line a choice. */
function typed(task: Task | null): Asked {
  const [text, second] = ["text", "pair"].map((id) => element<HTMLTextAreaElement>(id).value) as [string, string];
  if (task?.input !== "pair") return text;
  if (task.type !== "multiple_choice") return { text, pair: second };
  return { text, choices: second.split("\n").filter((line) => line.trim()) };
}

try {
  const page = await Page.open(ADDRESS);
  await page.start();
  element("state").textContent = "Tokenizer, base and adapters run here, in WebAssembly. Nothing leaves this page.";
} catch (error) {
  element("state").textContent = "The bundle cannot be used.";
  showError(error);
  document.body.dataset["failed"] = "";
}
