/** What the page shows. */
import type { Finding } from "../../node/src/core/selfCheck.js";
import type { Scored } from "../../node/src/core/text.js";

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

export function bars(title: string, classes: Scored[]): HTMLElement {
  const block = make("section", "", title);
  for (const { label, probability } of classes.slice(0, LONGEST)) {
    const row = make("div", "row");
    const bar = make("div", "bar");
    bar.style.width = `${100 * probability}%`;
    row.append(make("span", "label", label), bar, make("span", "number", `${(100 * probability).toFixed(1)} %`));
    block.append(row);
  }
  return block;
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
