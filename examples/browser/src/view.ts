/** What the page shows. */
import type { Answer, Scored } from "../../node/src/core/answers.js";
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
  const block = make("section", "", title);
  block.dataset["answer"] = JSON.stringify({ classes, tokens, numbers, outputs });
  if (classes) block.append(...bars(classes));
  if (tokens) block.append(make("p", "", tokens.map(({ label }) => label).join(" ")));
  if (numbers) block.append(make("p", "", numbers.slice(0, LONGEST).map((number) => number.toFixed(3)).join(", ")));
  for (const [name, shape] of Object.entries(outputs ?? {})) block.append(make("p", "", `${name}: ${shape.join(" × ")}`));
  return block;
}

function bars(classes: Scored[]): HTMLElement[] {
  return classes.slice(0, LONGEST).map(({ label, probability }) => {
    const row = make("div", "row");
    const bar = make("div", "bar");
    bar.style.width = `${100 * probability}%`;
    row.append(make("span", "label", label), bar, make("span", "number", `${(100 * probability).toFixed(1)} %`));
    return row;
  });
}

export function findingsTable(findings: Finding[]): HTMLElement {
  const table = make("table", "");
  const head = make("tr", "");
  head.append(...["flavour", "adapter", "of what is allowed"].map((text) => make("th", "", text)));
  table.append(head);
  for (const { flavour, adapter, mixed, worst } of findings) {
    const row = make("tr", worst <= 1 ? "" : "error");
    row.dataset["finding"] = JSON.stringify({ flavour, adapter, mixed, worst });
    const who = mixed ? "mixed batch" : (adapter ?? "base");
    row.append(...[flavour, who, `${(100 * worst).toFixed(1)} %`].map((text) => make("td", "", text)));
    table.append(row);
  }
  return table;
}

export function choice(name: string, selected: boolean, onChange: () => void): HTMLElement {
  const label = make("label", "");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "adapter", value: name, checked: selected });
  input.addEventListener("change", onChange);
  label.append(input, ` ${name}`);
  return label;
}

export function show(...nodes: (HTMLElement | string)[]): void {
  element("result").replaceChildren(...nodes);
}

export function showError(error: unknown): void {
  show(make("p", "error", error instanceof Error ? error.message : String(error)));
}
