/** Texts to tokens by the task of each row's adapter, and their answers in terms of the text. */
import { Tensor } from "onnxruntime-common";

import { type By, type Context, type Keys, type Nested, type Prediction, type TokenSpan, answerTo, choose } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type LengthsRecord, lengthsOf } from "./manifest.js";
import type { Head, Inputs } from "./request.js";
import type { Outputs } from "./runners.js";
import { type Task, embeds } from "./task.js";
import { type Row, Tokens } from "./tokens.js";

/** A text, a pair of texts, or a question with its choices. */
export interface Asked {
  text: string;
  /** The second text of a pair. */
  pair?: string;
  /** The choices of a question, each of them the second text of a pair. */
  choices?: string[];
  /** Which side of a search a text is on, for adapters with a prefix of queries and one of documents. */
  side?: "query" | "document";
}

/** A text as tokens: one row, or one for each choice. */
export interface ReadText {
  asked: Asked;
  task: Task | null;
  rows: Row[];
}

/** The keys of an answer to a row that came as text. */
type TextKeys =
  | Keys
  | { choice: number; probabilities: number[] }
  /** The tokens that are not special; without `start` and `end` if this client cannot locate those of the tokenizer. */
  | { tokens: (Prediction & { token: string; start?: number; end?: number })[] }
  /** The token of each vector. */
  | { vector_tokens: string[]; vectors: number[][] }
  /** The characters of the second text, from 0: the first one, and the one after the last. */
  | { answer: string; start: number; end: number; probability: number };

/** The number of tokens of a text that were left out, if any were. */
interface Cut {
  cut?: number;
}

/** The answer to a row. */
export type TextAnswer = By & TextKeys & Cut;

/** Tokens as a base takes them. */
type TokenIds = Pick<Row, "ids" | "types">;

/** The values of each input of a base that reads texts. */
const COLUMNS: Record<string, (row: TokenIds) => number[]> = {
  input_ids: ({ ids }) => ids,
  attention_mask: ({ ids }) => ids.map(() => 1),
  token_type_ids: ({ types }) => types,
};

/** Reads texts with the bundle's tokenizer. */
export class TextReader {
  private constructor(
    private readonly bundle: Bundle,
    private readonly tokens: Tokens,
    private readonly digest: string,
    private readonly lengths: LengthsRecord,
  ) {}

  static async open(bundle: Bundle): Promise<TextReader> {
    const { text, media } = bundle.manifest;
    if (!text && media) {
      const found = `a processor (${media.steps?.map(({ op }) => op).join(" → ") ?? media.unknown})`;
      throw new Fault({ what: `the bundle reads no texts, and this client no ${media.medium}`, found, fix: `give arrays for \`${media.input}\`` });
    }
    if (!text) throw new Fault({ what: "the bundle has no tokenizer", fix: "give arrays" });
    const tokens = new Tokens(await bundle.read(text.tokenizer), text.tokenizer);
    const ids = bundle.manifest.inputs.find(({ name }) => name === "input_ids");
    return new TextReader(bundle, tokens, text.digest, ids ? lengthsOf(bundle.manifest, ids.axes[1]!) : {});
  }

  /** Throws a Fault if a text is of another kind than the task takes, or its adapter had another tokenizer. */
  read(asked: Asked, adapter: Choice, task: Task | null): ReadText {
    if (task?.tokenizer && task.tokenizer !== this.digest) {
      const [what, where] = ["was trained with another tokenizer than the bundle's", `adapter \`${adapter}\``];
      const fix = "build the bundle with the tokenizer that the adapter was trained with, or give arrays";
      throw new Fault({ what, where, found: `${this.digest.slice(0, 12)}…`, expected: `${task.tokenizer.slice(0, 12)}…`, fix });
    }
    checkKind(asked, adapter, task);
    const most = this.lengths.maximum ?? Infinity;
    const limit = Math.min(task?.max_tokens ?? most, most);
    const rows = pieces(asked, task, prefixOf(asked, adapter, task)).map((texts) => this.tokens.row(texts, limit, task?.truncation ?? this.tokens.side));
    if (task?.template && rows.some(({ found, ids }) => found > ids.length)) {
      throw new Fault({ what: "has more tokens than are taken, and a prompt is not truncated", expected: `at most ${limit}`, fix: "shorten it" });
    }
    return { asked, task, rows };
  }

  /** The inputs of a row `[1, tokens]`, without padding. */
  inputs(row: TokenIds): Inputs {
    return Object.fromEntries(
      this.bundle.manifest.inputs.map(({ name, dtype }) => {
        const column = COLUMNS[name];
        if (!column || dtype !== "int64") throw new Fault({ what: "an input that no text gives", where: `\`${name}\`` });
        const values = BigInt64Array.from(column(row), BigInt);
        return [name, new Tensor("int64", values, [1, values.length])];
      }),
    );
  }

  /** The answer to a text from the outputs of its rows. */
  answer({ asked, rows, task }: ReadText, head: Head, outputs: Outputs[]): TextKeys & Cut {
    const answers = rows.map((row, at) => answerTo(head, outputs[at]!, null, contextOf(row, asked, task)));
    const cut = Math.max(...rows.map(({ found, ids }) => found - ids.length));
    return { ...this.said(asked, task, rows[0]!, answers), ...(cut > 0 ? { cut } : {}) };
  }

  private said(asked: Asked, task: Task | null, row: Row, answers: Keys[]): TextKeys {
    const answer = answers[0]!;
    if (asked.choices && task) return choose(answers.map((each) => ("score" in each ? each.score : NaN)));
    if (asked.choices && "outputs" in answer) return { outputs: ofEach(answers) };
    if ("tokens" in answer) {
      const parts = asked.pair === undefined ? [0] : [0, 1];
      const characters = parts.map((part) => this.tokens.characters(textOf(asked, part)));
      return {
        tokens: answer.tokens.flatMap((one, index) => {
          const place = row.places[index];
          if (!one || !place) return [];
          const span = characters[place.part]?.[place.at];
          return [{ token: span?.[2] ?? row.tokens[index]!, ...(span ? { start: span[0], end: span[1] } : {}), ...one }];
        }),
      };
    }
    if ("vectors" in answer) {
      const counted = contextOf(row, asked, task);
      return { vector_tokens: row.tokens.filter((_, at) => counted[at] === 1), ...answer };
    }
    return "first_token" in answer ? this.span(asked, row, answer) : answer;
  }

  private span(asked: Asked, row: Row, { first_token, last_token, probability }: TokenSpan): TextKeys {
    const text = textOf(asked, 1);
    const characters = this.tokens.characters(text);
    if (!characters) {
      const fix = "give arrays: then the answer names tokens";
      throw new Fault({ what: "this client cannot locate the answer of this tokenizer in the text", fix });
    }
    const [start, end] = [characters[row.places[first_token]!.at]![0], characters[row.places[last_token]!.at]![1]];
    return { answer: Array.from(text).slice(start, end).join(""), start, end, probability };
  }
}

/** The tokens of a row that may be the answer to a question, those of the second text or of the only one; or that have a vector. */
function contextOf({ places, ids }: Row, asked: Asked, task: Task | null): Context {
  if (task?.type === "multi_vector") return ids.map((id) => (asked.side !== "query" && task.skiplist.includes(id) ? 0 : 1));
  const part = asked.pair === undefined && asked.choices === undefined ? 0 : 1;
  return places.map((place) => (place?.part === part ? 1 : 0));
}

/** Of each output, its values for each choice. */
function ofEach(answers: Keys[]): Record<string, Nested> {
  const outputs = answers.map((each) => ("outputs" in each ? each.outputs : {}));
  return Object.fromEntries(Object.keys(outputs[0]!).map((name) => [name, outputs.map((each) => each[name]!)]));
}

/** Throws a Fault if a text does not say its side where it must, or says one that it cannot have. */
function prefixOf({ side }: Asked, adapter: Choice, task: Task | null): string {
  const where = `adapter \`${adapter ?? "base"}\``;
  const hasSides = task !== null && (task.query_prefix !== "" || task.document_prefix !== "" || task.skiplist.length > 0);
  if (side === undefined) {
    if (!hasSides) return task?.prefix ?? "";
    const what = "a text does not say whether it is a query or a document, which are read differently";
    throw new Fault({ what, where, fix: 'give its `side`, "query" or "document"' });
  }
  if (task === null || !embeds(task.type) || (side !== "query" && side !== "document")) {
    throw new Fault({ what: "is no side of a search", where, found: String(side) });
  }
  return (hasSides && task[`${side}_prefix`]) || task.prefix;
}

/** The texts of each row: one with its prefix, or two. */
function pieces(asked: Asked, task: Task | null, prefix: string): string[][] {
  if (asked.choices) return asked.choices.map((choice) => [asked.text, choice]);
  if (asked.pair === undefined) return [[prefix + asked.text]];
  return [task?.template ? [filled(task.template, asked.text, asked.pair)] : [asked.text, asked.pair]];
}

/** The text that a template makes of a pair; what a text itself says of `{pair}` stays. */
function filled(template: string, text: string, pair: string): string {
  const [before, rest] = template.split("{text}") as [string, string];
  const [between, after] = rest.split("{pair}") as [string, string];
  return `${before}${text}${between}${pair}${after}`;
}

/** The text of a part of a row: of one text, always that. */
function textOf({ text, pair }: Asked, part: number): string {
  return part === 1 && pair !== undefined ? pair : text;
}

const KINDS = { text: "one text", pair: "a pair of texts", choices: "a question with choices", image: "an image", audio: "an audio file" };

function checkKind(asked: Asked, adapter: Choice, task: Task | null): void {
  const kind = asked.choices ? "choices" : asked.pair === undefined ? "text" : "pair";
  if (asked.choices?.length === 0) throw new Fault({ what: "a question without choices" });
  if (asked.choices && asked.pair !== undefined) throw new Fault({ what: "a row has `pair` or `choices`, not both" });
  if (!task || kind === task.input || (kind === "choices" && task.type === "multiple_choice" && task.input === "pair")) return;
  const expected = `${task.type === "multiple_choice" ? "a pair of texts or a question with choices" : KINDS[task.input]}, as \`${task.type}\` takes`;
  throw new Fault({ what: "is of another kind than the task takes", where: `adapter \`${adapter ?? "base"}\``, found: KINDS[kind], expected });
}
