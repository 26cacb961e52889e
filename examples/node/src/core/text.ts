/** Texts in, answers out: each text becomes tokens as the record of its adapter says, and its result an answer. */
import { Tensor } from "onnxruntime-common";

import { type Answer, type Prediction, choose } from "./answers.js";
import type { Bundle, Choice } from "./bundle.js";
import { Fault } from "./fault.js";
import { type LengthsRecord, lengthsOf, lengthsText, nextLength } from "./manifest.js";
import type { Inputs } from "./request.js";
import type { Task } from "./task.js";
import { type Row, Tokens } from "./tokens.js";

/** A text, a pair of texts, or a question with its choices. */
export type Asked = string | { text: string; pair: string } | { text: string; choices: string[] };

/** A text as tokens: one row, or one for each choice. */
export interface ReadText {
  asked: Asked;
  adapter: Choice;
  task: Task | null;
  rows: Row[];
}

/** What an adapter says of a text: the answer to a row, in the words of the text. */
export type TextAnswer = (
  | Answer
  | { choice: number; probabilities: number[] }
  /** The tokens that are not special; of some tokenizers this client cannot say where they stand. */
  | { tokens: (Prediction & { token: string; start?: number; end?: number })[] }
  /** The characters of the second text, from 0: the first, and the one behind the last. */
  | { answer: string; start: number; end: number; probability: number }
) & {
  /** How many tokens of the text were left out. */
  cut?: number;
};

/** Tokens as a base takes them. */
type TokenIds = Pick<Row, "ids" | "types">;

/** What each input of a base that reads texts holds. */
const COLUMNS: Record<string, (row: TokenIds) => number[]> = {
  input_ids: ({ ids }) => ids,
  attention_mask: ({ ids }) => ids.map(() => 1), // what a row is filled up with is 0
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
    const rows = pieces(asked, task?.prefix ?? "").map((texts) => this.tokens.row(texts, limit, task?.truncation ?? this.tokens.side));
    return { asked, adapter, task, rows };
  }

  /** The inputs of rows of one length, filled up to one that the base takes, if padding changes nothing. */
  inputs(rows: TokenIds[]): Inputs {
    const length = rows[0]!.ids.length;
    const width = nextLength(length, this.lengths);
    const { inputs, padding_neutral } = this.bundle.manifest;
    if (width === undefined || (width !== length && !(padding_neutral && inputs.some(({ name }) => name === "attention_mask")))) {
      const what = "a text has a number of tokens that the base does not take, and padding would change its results";
      throw new Fault({ what, found: `${length}`, expected: lengthsText(this.lengths), fix: "give texts of other lengths" });
    }
    const filled = (column: (row: TokenIds) => number[]) => (row: TokenIds) => [...column(row), ...Array<number>(width - length).fill(0)];
    return Object.fromEntries(
      this.bundle.manifest.inputs.map(({ name, dtype }) => {
        const column = COLUMNS[name];
        if (!column || dtype !== "int64") throw new Fault({ what: "an input that no text gives", where: `\`${name}\`` });
        const values = BigInt64Array.from(rows.flatMap(filled(column)), BigInt);
        return [name, new Tensor("int64", values, [rows.length, width])];
      }),
    );
  }

  /** The answer to a text from those to its rows. */
  answer({ asked, rows, task }: ReadText, answers: Answer[]): TextAnswer {
    const cut = Math.max(...rows.map(({ found, ids }) => found - ids.length));
    return { ...this.said(asked, task, rows, answers), ...(cut > 0 ? { cut } : {}) };
  }

  private said(asked: Asked, task: Task | null, [row]: Row[], answers: Answer[]): TextAnswer {
    const answer = answers[0]!;
    if (typeof asked === "object" && "choices" in asked && task) {
      return choose(answers.map((each) => ("score" in each ? each.score : NaN)));
    }
    if ("tokens" in answer) {
      const characters = this.tokens.characters(textOf(asked, 0));
      const others = typeof asked === "object" ? this.tokens.characters(textOf(asked, 1)) : null;
      return {
        tokens: answer.tokens.flatMap((one, index) => {
          const place = row!.places[index];
          if (!one || !place) return [];
          const span = (place.part === 0 ? characters : others)?.[place.at];
          return [{ token: row!.tokens[index]!, ...(span ? { start: span[0], end: span[1] } : {}), ...one }];
        }),
      };
    }
    if ("start" in answer) return this.span(asked, row!, answer);
    return answer;
  }

  private span(asked: Asked, row: Row, { start, end, probability }: { start: number; end: number; probability: number }): TextAnswer {
    const text = textOf(asked, typeof asked === "object" ? 1 : 0);
    const characters = this.tokens.characters(text);
    if (!characters) {
      const fix = "give arrays: then the answer names tokens";
      throw new Fault({ what: "this client cannot say where in the text the answer stands", fix });
    }
    const [from, to] = [characters[row.places[start]!.at]![0], characters[row.places[end]!.at]![1]];
    return { answer: Array.from(text).slice(from, to).join(""), start: from, end: to, probability };
  }
}

/** Which tokens of a row may be the answer to a question: those of its last text. */
export function contextOf({ places }: Row): boolean[] {
  const last = Math.max(...places.map((place) => place?.part ?? 0));
  return places.map((place) => place?.part === last);
}

/** What a row is made of: one text with its prefix, or two. */
function pieces(asked: Asked, prefix: string): string[][] {
  if (typeof asked === "string") return [[prefix + asked]];
  return "choices" in asked ? asked.choices.map((choice) => [asked.text, choice]) : [[asked.text, asked.pair]];
}

function textOf(asked: Asked, part: number): string {
  if (typeof asked === "string") return asked;
  return part === 1 && "pair" in asked ? asked.pair : asked.text;
}

const KINDS = { text: "one text", pair: "a pair of texts", choices: "a question with choices", image: "a picture", audio: "a clip" };

function checkKind(asked: Asked, adapter: Choice, task: Task | null): void {
  const kind = typeof asked === "string" ? "text" : "choices" in asked ? "choices" : "pair";
  if (kind === "choices" && !(asked as { choices: string[] }).choices.length) throw new Fault({ what: "a question without choices" });
  if (!task || kind === task.input || (kind === "choices" && task.type === "multiple_choice" && task.input === "pair")) return;
  const expected = `${task.type === "multiple_choice" ? "a pair of texts or a question with choices" : KINDS[task.input]}, as \`${task.type}\` takes`;
  throw new Fault({ what: "is of another kind than the task takes", where: `adapter \`${adapter ?? "base"}\``, found: KINDS[kind], expected });
}
