/**
 * A text or a pair of texts to tokens, by the tokenizer library. It neither cuts nor reports which text a token belongs to, so its
 * post-processor, which adds the special tokens, is given places instead of tokens.
 */
import { Tokenizer } from "@huggingface/tokenizers";

import { type Characters, type Sections, type Splitting, charactersOf } from "./characters.js";
import { Fault } from "./fault.js";

export type Side = "right" | "left";

/** Tokens, special ones included, cut and not padded. */
export interface Row {
  ids: number[];
  types: number[];
  /** As the tokenizer writes them. */
  tokens: string[];
  /** Of each token its text, 0 or 1, and its place there before it was cut; null of a special token. */
  places: ({ part: number; at: number } | null)[];
  /** The number of tokens before the row was cut. */
  found: number;
}

/** The sections of a `tokenizer.json` that the library leaves out, or does not report. */
interface Config extends Sections {
  truncation?: { direction?: string; strategy?: string } | null;
}

/** The limit for one text: a longer one is a file that was meant to be many texts. */
const MOST_CHARACTERS = 1_000_000;

/** Half of a surrogate pair, or NUL, which ends a string in C. */
const NO_TEXT = /[\u{d800}-\u{dfff}\0]/u;

/** Characters that are blanks either in Unicode or in JavaScript's regular expressions: NEL and the byte order mark. */
const BLANK_TO_ONE = /[\u0085\ufeff]/;

/** The end and the start of a word, by `\w` of the tokenizers that models are trained with (UTS 18, annex C). */
const WORD = String.raw`[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]`;
const [ENDS_WITH_WORD, STARTS_WITH_WORD] = [new RegExp(`${WORD}$`, "u"), new RegExp(`^${WORD}`, "u")];

export class Tokens {
  /** The side on which texts are cut if no task names one. */
  readonly side: Side;
  private readonly tokenizer: Tokenizer;
  private readonly strategy: string;
  private readonly sections: Sections;

  /** Throws a Fault if the bytes are no `tokenizer.json`, or one that the library does not know. */
  constructor(bytes: Uint8Array, where: string) {
    try {
      const config = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Config;
      this.tokenizer = new Tokenizer(config, {});
      lowerByCharacter(this.tokenizer);
      refuseInsideWords(this.tokenizer);
      this.side = config.truncation?.direction?.toLowerCase() === "left" ? "left" : "right";
      this.strategy = config.truncation?.strategy ?? "LongestFirst";
      this.sections = config;
    } catch (error) {
      throw new Fault({ what: "is no tokenizer that this client can use", where, found: String(error), fix: "give arrays" });
    }
  }

  /** Throws a Fault if a text is not valid Unicode, is too long, or cannot be cut to the limit. */
  row(texts: string[], limit: number, side: Side): Row {
    for (const text of texts) {
      checkText(text);
      this.checkBlanks(text);
    }
    const own = texts.map((text) => this.tokenizer.encode(text, { add_special_tokens: false }));
    const special = this.arranged(own.map(() => [])).places.length;
    if (limit <= special) throw noRoom(`at most ${limit} tokens`, `more than the ${special} special tokens`);
    const counts = own.map(({ ids }) => ids.length);
    const kept = counts.length === 1 ? [Math.min(counts[0]!, limit - special)] : this.lengths(counts, limit - special);
    const ranges = counts.map((count, part) => range(side === "right" ? 0 : count - kept[part]!, kept[part]!));
    const { places, names, types } = this.arranged(ranges);
    return {
      ids: places.map((place, index) => (place ? own[place.part]!.ids[place.at]! : this.id(names[index]!))),
      tokens: places.map((place, index) => (place ? own[place.part]!.tokens[place.at]! : names[index]!)),
      types,
      places,
      found: special + counts.reduce((sum, count) => sum + count, 0),
    };
  }

  /** The place of each token of a text; null if this client cannot locate those of this tokenizer. */
  characters(text: string): Characters | null {
    const { tokens } = this.tokenizer.encode(text, { add_special_tokens: false });
    return charactersOf(this.tokenizer, this.sections, text, tokens);
  }

  /** Add the special tokens around those of the texts, which are given by their places. */
  private arranged(parts: number[][]): { places: Row["places"]; names: string[]; types: number[] } {
    const marked = parts.map((places, part) => places.map((at) => `\0${part}/${at}`));
    const [first = [], second = null] = marked;
    const post = this.tokenizer.post_processor;
    const plain = { tokens: [...first, ...(second ?? [])], token_type_ids: undefined };
    const { tokens, token_type_ids }: { tokens: string[]; token_type_ids?: number[] } = post ? post(first, second, true) : plain;
    const places = tokens.map((token) => {
      const [, part, at] = /^\0(\d)\/(\d+)$/.exec(token) ?? [];
      return at === undefined ? null : { part: Number(part), at: Number(at) };
    });
    if (places.filter((place) => place !== null).length !== plain.tokens.length) {
      const fix = "give arrays, or take the client for another language";
      throw new Fault({ what: "the tokenizer library of JavaScript loses tokens of a pair with this tokenizer", fix });
    }
    return { places, names: tokens, types: token_type_ids ?? places.map((place) => place?.part ?? 0) };
  }

  /** Refuse a text for which the library would end words elsewhere than the tokenizers that models are trained with. */
  private checkBlanks(text: string): void {
    const { normalizer } = this.tokenizer;
    const found = BLANK_TO_ONE.exec(normalizer ? normalizer(text) : text);
    if (!found) return;
    const what = "holds a character that the tokenizer library of JavaScript reads otherwise than others";
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    throw new Fault({ what, found: `U+${code}`, fix: "leave it out, or take the client for another language" });
  }

  private id(token: string): number {
    const id = this.tokenizer.token_to_id(token);
    if (id === undefined) throw new Fault({ what: "the tokenizer has no such token", found: `\`${token}\`` });
    return id;
  }

  /** The number of tokens to keep of each text of a pair. */
  private lengths(counts: number[], room: number): number[] {
    const [first, second] = counts as [number, number];
    const excess = first + second - room;
    if (excess <= 0) return counts;
    const one = { OnlyFirst: 0, OnlySecond: 1 }[this.strategy];
    if (one === undefined) return longestFirst(first, second, room);
    if (counts[one]! <= excess) throw noRoom(`${counts[one]} tokens of the text that is cut`, `more than ${excess}`);
    return counts.map((count, part) => (part === one ? count - excess : count));
  }
}

/**
 * Refuse a word with an added token with `single_word` inside. Others leave it in its word. The library finds it there, and has it in
 * the vocabulary of the model too.
 */
function refuseInsideWords(tokenizer: Tokenizer): void {
  const { added_tokens_map: known, splitter_unnormalized, splitter_normalized } = tokenizer as unknown as Splitting;
  for (const splitter of [splitter_unnormalized, splitter_normalized]) {
    const split = splitter.split.bind(splitter);
    splitter.split = (text) => {
      const parts = split(text);
      let start = 0;
      for (const part of parts) {
        const end = start + part.length;
        if (known.get(part)?.single_word && (ENDS_WITH_WORD.test(text.slice(0, start)) || STARTS_WITH_WORD.test(text.slice(end)))) {
          const what = "holds an added token inside a word, where the tokenizer library of JavaScript reads it otherwise than others";
          throw new Fault({ what, found: `\`${part}\``, fix: "add a blank, or take the client for another language" });
        }
        start = end;
      }
      return parts;
    };
  }
}

/**
 * Lower a capital sigma at the end of a word to σ, as the tokenizers that models are trained with do: they lower one character at a
 * time. JavaScript makes it ς, which gives other ids.
 */
function lowerByCharacter(tokenizer: Tokenizer): void {
  const { normalizer } = tokenizer;
  if (!normalizer || normalizer("aΣ") === normalizer("a") + normalizer("Σ")) return;
  const lowered = (text: string): string => normalizer(text.replaceAll("Σ", normalizer("Σ")));
  tokenizer.normalizer = lowered as typeof normalizer;
}

/** The longer text loses tokens until both have the same length, then both in turn. */
function longestFirst(first: number, second: number, room: number): number[] {
  const short = Math.min(first, second);
  const [less, more] = 2 * short <= room ? [short, room - short] : [Math.floor(room / 2), Math.ceil(room / 2)];
  return first > second ? [more, less] : [less, more];
}

function range(start: number, count: number): number[] {
  return Array.from({ length: count }, (_, at) => start + at);
}

function checkText(text: string): void {
  const wrong = NO_TEXT.exec(text);
  if (wrong) {
    const found = `${wrong[0] === "\0" ? "NUL" : "half of a surrogate pair"} at ${wrong.index}`;
    throw new Fault({ what: "is not valid Unicode", found, expected: "a string without it" });
  }
  const count = text.length > MOST_CHARACTERS ? Array.from(text).length : 0;
  if (count <= MOST_CHARACTERS) return;
  throw new Fault({ what: "is too long", found: `${count} characters`, expected: `at most ${MOST_CHARACTERS}` });
}

function noRoom(found: string, expected: string): Fault {
  return new Fault({ what: "the limit leaves no room for the text", found, expected });
}
