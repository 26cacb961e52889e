/** What the page shows. */
import type { Answer, Nested, Scored } from "../../node/src/core/answers.js";
import type { Finding } from "../../node/src/core/selfCheck.js";

const LONGEST = 12;

export function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** Text goes in as text: labels and names come from files. */
function make(tag: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** What an adapter says, by its task. */
export function answerBlock(title: string, { classes, tokens, numbers, outputs }: Answer): HTMLElement {
  const block = make("section", "");
  block.dataset["answer"] = JSON.stringify({ classes, tokens, numbers });
  block.append(make("h2", "", title));
  if (classes) block.append(...bars(classes));
  if (tokens) block.append(make("p", "", tokens.flatMap((token) => (token ? [token.label] : [])).join(" ")));
  if (numbers) block.append(make("p", "number", shortened(numbers)));
  for (const [name, values] of Object.entries(outputs ?? {})) block.append(outputLine(name, values));
  return block;
}

function bars(classes: Scored[]): HTMLElement[] {
  return classes.slice(0, LONGEST).map(({ label, probability }, at) => {
    const row = make("div", at === 0 ? "row best" : "row");
    const track = make("div", "track");
    const bar = make("div", "bar");
    bar.style.width = `${100 * probability}%`;
    track.append(bar);
    row.append(make("span", "label", label), track, make("span", "number", `${(100 * probability).toFixed(1)} %`));
    return row;
  });
}

/** The shape of an output, and how it begins. */
function outputLine(name: string, values: Nested): HTMLElement {
  const shape: number[] = [];
  let first = values;
  for (; Array.isArray(first[0]); first = first[0]) shape.push(first.length);
  const line = make("p", "quiet", `${name} [${[...shape, first.length].join(" × ")}]: `);
  line.append(make("span", "number", shortened(first as number[])));
  return line;
}

function shortened(numbers: number[]): string {
  const shown = numbers.slice(0, LONGEST / 2).map((number) => number.toFixed(3));
  return shown.join(", ") + (numbers.length > shown.length ? ", …" : "");
}

export function findingsTable(findings: Finding[]): HTMLElement {
  const table = make("table", "");
  const head = make("tr", "");
  head.append(...["flavour", "adapter", "of what is allowed", ""].map((text) => make("th", "", text)));
  table.append(head);
  for (const { flavour, adapter, mixed, worst } of findings) {
    const row = make("tr", worst <= 1 ? "" : "error");
    row.dataset["finding"] = JSON.stringify({ flavour, adapter, mixed, worst });
    const who = mixed ? "mixed batch" : (adapter ?? "base");
    row.append(...[flavour, who].map((text) => make("td", "", text)));
    row.append(make("td", "number", `${(100 * worst).toFixed(1)} %`), make("td", "", worst <= 1 ? "✓" : "✗"));
    table.append(row);
  }
  return table;
}

export function choice(name: string, selected: boolean, onChange: () => void): HTMLElement {
  const label = make("label", "choice");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "adapter", value: name, checked: selected });
  input.addEventListener("change", onChange);
  label.append(input, make("span", "", name));
  return label;
}

export function show(...nodes: (HTMLElement | string)[]): void {
  element("result").replaceChildren(...nodes);
}

export function showError(error: unknown): void {
  element("latency").textContent = "";
  show(make("p", "error", error instanceof Error ? error.message : String(error)));
}
