/** The elements that the page shows. */
import type { Nested } from "../../node/src/core/answers.js";
import type { Finding } from "../../node/src/core/selfCheck.js";
import type { TextAnswer } from "../../node/src/core/text.js";

const LONGEST = 12;

export function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** Labels and names come from files: they are set as text, never as HTML. */
function make(tag: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** An answer, by the keys of its task. */
export function answerBlock(title: string, answer: TextAnswer): HTMLElement {
  const block = make("section", "");
  block.dataset["answer"] = JSON.stringify(answer);
  block.append(make("h2", "", title), ...said(answer));
  if (answer.cut) block.append(make("p", "quiet", `${answer.cut} tokens of the text were cut off`));
  return block;
}

function said(answer: TextAnswer): HTMLElement[] {
  if ("choice" in answer) {
    const shares = answer.probabilities.map((share, at) => [`choice ${at + 1}`, share]);
    return bars(Object.fromEntries(shares), [`choice ${answer.choice + 1}`]);
  }
  if ("probabilities" in answer) return bars(answer.probabilities, "labels" in answer ? answer.labels : [answer.label]);
  if ("tokens" in answer) return [make("p", "", answer.tokens.flatMap((token) => token?.label ?? []).join(" "))];
  if ("answer" in answer || "first_token" in answer) {
    const words = "answer" in answer ? answer.answer : `tokens ${answer.first_token} to ${answer.last_token}`;
    return [make("p", "", words), ...bars({ probability: answer.probability }, [])];
  }
  if ("score" in answer) return [make("p", "number", answer.score.toFixed(3))];
  if ("outputs" in answer) return Object.entries(answer.outputs).map(([name, values]) => outputLine(name, values));
  if ("vectors" in answer) return answer.vectors.map((vector) => make("p", "number", shortened(vector)));
  if ("weights" in answer) return bars(answer.weights, []);
  return [make("p", "number", shortened("numbers" in answer ? answer.numbers : answer.vector))];
}

/** The most probable label first; the chosen labels are highlighted. */
function bars(probabilities: Record<string, number>, chosen: string[]): HTMLElement[] {
  const ordered = Object.entries(probabilities).sort(([, one], [, other]) => other - one);
  return ordered.slice(0, LONGEST).map(([label, probability]) => {
    const row = make("div", chosen.includes(label) ? "row best" : "row");
    const track = make("div", "track");
    const bar = make("div", "bar");
    bar.style.width = `${100 * probability}%`;
    track.append(bar);
    row.append(make("span", "label", label), track, make("span", "number", `${(100 * probability).toFixed(1)} %`));
    return row;
  });
}

/** The shape of an output, and its first numbers. */
function outputLine(name: string, values: Nested): HTMLElement {
  const shape: number[] = [];
  let first: Nested[] = [];
  for (let at: Nested | undefined = values; Array.isArray(at); at = at[0]) {
    first = at;
    shape.push(at.length);
  }
  const line = make("p", "quiet", `${name} [${shape.join(" × ")}]: `);
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
  head.append(...["variant", "adapter", "of what is allowed", ""].map((text) => make("th", "", text)));
  table.append(head);
  for (const finding of findings) {
    const { variant, graph, adapter, mixed, worst, passed, compared = true, reason } = finding;
    const row = make("tr", passed ? "" : "error");
    row.dataset["finding"] = JSON.stringify(finding);
    const who = mixed ? "mixed batch" : (adapter ?? "base");
    row.append(...[graph ? `${variant}, ${graph}` : variant, who].map((text) => make("td", "", text)));
    const share = compared ? `${(100 * worst).toFixed(1)} %` : "not compared";
    const mark = make("td", "", !compared ? "" : passed ? "✓" : "✗");
    row.append(make("td", "number", share), mark);
    if (reason) row.title = reason;
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

export function errorLine(error: unknown): HTMLElement {
  return make("p", "error", error instanceof Error ? error.message : String(error));
}

export function showError(error: unknown): void {
  element("latency").textContent = "";
  show(errorLine(error));
}
