/** The places of tokens in their text. The tokenizer library does not report them, so its steps are repeated here. */
import type { Tokenizer } from "@huggingface/tokenizers";

/**
 * For each token its first character and the one after its last, in Unicode characters from 0, and its name: of an added token with the
 * blanks that it takes.
 */
export type Characters = [start: number, end: number, name: string][];

/** A step of a pipeline in a `tokenizer.json`. */
interface Step {
  type?: string;
  trim_offsets?: boolean;
  add_prefix_space?: boolean;
  replacement?: string;
  pretokenizers?: Step[];
  processors?: Step[];
}

/** The sections of a `tokenizer.json` that decide where tokens are. */
export interface Sections {
  pre_tokenizer?: Step | null;
  post_processor?: Step | null;
  model?: { continuing_subword_prefix?: string | null; end_of_word_suffix?: string | null; byte_fallback?: boolean };
}

type Model = NonNullable<Tokenizer["model"]>;

/** A token of `added_tokens` in a `tokenizer.json`. */
interface AddedToken {
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
  single_word: boolean;
}

/** How the library finds added tokens in a text: most before its normalisation, others after it. Its types do not show these fields. */
export interface Splitting {
  splitter_unnormalized: { split(text: string): string[] };
  splitter_normalized: { split(text: string): string[] };
  added_tokens_map: Map<string, AddedToken>;
}

/** A part of a text between added tokens, or one of them with the blanks that it takes, by UTF-16 units. */
interface Part {
  start: number;
  end: number;
  added: string | null;
}

/** A text after normalisation, and for each UTF-16 unit the character of the text that it comes from. */
interface Normalised {
  text: string;
  sources: number[];
}

/** The part of the normalised text of a word: for each UTF-16 unit of the word its start and end there. */
interface Piece {
  starts: number[];
  ends: number[];
}

/** A character with the marks that combine with it, and a syllable of Hangul, which are normalised together. */
const CLUSTER = /[^\p{M}\u1160-\u11ff][\p{M}\u1160-\u11ff]*|[\p{M}\u1160-\u11ff]+/gu;

/** Steps of a pre-tokenizer that drop blanks. */
const SPLITTING = ["WhitespaceSplit", "Whitespace", "BertPreTokenizer"];

const BLANKS = /\s*/y;

const BYTE_TOKEN = /^<0x[0-9A-F]{2}>$/;

/** The sign for a blank of byte-level tokenizers. */
const BYTE_LEVEL = "Ġ";

/** The bytes by the printable characters that byte-level tokenizers write for them. */
const BYTES = byteTable();

/**
 * The places of tokens whose words are parts of the normalised text, directly (WordPiece), as bytes (byte-level BPE) or with a mark
 * for blanks (SentencePiece), and of added tokens in the text, such as `[MASK]`; null for words that cannot be found again.
 */
export function charactersOf(tokenizer: Tokenizer, sections: Sections, text: string, tokens: string[]): Characters | null {
  const library = tokenizer as unknown as Splitting;
  const found: Located[] = [];
  const parts = partsOf(text, library.splitter_unnormalized.split(text), library);
  for (const [index, part] of parts.entries()) {
    const before = Array.from(text.slice(0, part.start)).length;
    const own = text.slice(part.start, part.end);
    const inside = part.added === null ? locatedIn(tokenizer, sections, own, index) : [alone(tokenizer, part.added, own)];
    if (inside === null) return null;
    found.push(...inside.map(({ place: [from, to], ...each }): Located => ({ ...each, place: [before + from, before + to] })));
  }
  if (String(found.map(({ token }) => token)) !== String(tokens)) return null;
  const trimming = stepsOf(sections.post_processor).find(({ trim_offsets: trims }) => trims);
  const trims = trimming !== undefined && blankOf(stepsOf(sections.pre_tokenizer)) === BYTE_LEVEL;
  return found.map(({ name, place }, at) => [...(trims ? trimmed(place, name, at, trimming.add_prefix_space ?? true) : place), name]);
}

/** A token as the library names it, its name with blanks, and its place, in characters. */
interface Located {
  token: string;
  name: string;
  place: [number, number];
}

/** An added token that is a whole text, with its blanks. */
function alone(tokenizer: Tokenizer, token: string, text: string): Located {
  const { added_tokens_map: known } = tokenizer as unknown as Splitting;
  const { normalizer } = tokenizer;
  const name = normalizer && known.get(token)!.normalized ? normalizer(text) : text;
  return { token, name, place: [0, Array.from(text).length] };
}

/** The tokens of a text between added tokens that are found before the normalisation, and their places; null as of `charactersOf`. */
function locatedIn(tokenizer: Tokenizer, sections: Sections, text: string, index: number): Located[] | null {
  const normalised = normalise(tokenizer, text);
  const { pre_tokenizer: split, model } = tokenizer;
  if (normalised === null || !split || !model) return null;
  const library = tokenizer as unknown as Splitting;
  const steps = stepsOf(sections.pre_tokenizer);
  const [blank, isSplit] = [blankOf(steps), steps.some(({ type }) => SPLITTING.includes(type ?? ""))];
  const found: Located[] = [];
  const placeOf = (start: number, end: number): [number, number] => {
    const first = normalised.sources[start] ?? 0;
    return [first, end > start ? normalised.sources[end - 1]! + 1 : first];
  };
  for (const part of partsOf(normalised.text, library.splitter_normalized.split(normalised.text), library)) {
    if (part.added !== null) {
      found.push({ token: part.added, name: normalised.text.slice(part.start, part.end), place: placeOf(part.start, part.end) });
      continue;
    }
    let at = part.start;
    for (const word of part.end > at ? split(normalised.text.slice(at, part.end), { section_index: index }) : []) {
      const piece = located(word, normalised.text, at, blank, isSplit);
      const own = model([word]);
      const lengths = own.length === 1 ? [[0, word.length] as const] : surfaces(model, word, sections);
      if (!piece || !lengths || lengths.length !== own.length) return null;
      for (const [token, [from, to]] of lengths.entries()) {
        found.push({ token: own[token]!, name: own[token]!, place: placeOf(piece.starts[from]!, piece.ends[to - 1]!) });
      }
      at = piece.end;
    }
  }
  return found;
}

/** The parts of a text that the library splits at added tokens, which take blanks from their neighbours. */
function partsOf(text: string, pieces: string[], { added_tokens_map: known }: Splitting): Part[] {
  let at = 0;
  const parts = pieces.map((piece): Part => ({ start: at, end: (at += piece.length), added: null }));
  const name = (part: Part) => {
    const own = text.slice(part.start, part.end);
    part.added ??= known.has(own) ? own : null;
  };
  for (const [index, part] of parts.entries()) {
    name(part);
    const token = part.added === null ? undefined : known.get(part.added);
    const [before, after] = [parts[index - 1], parts[index + 1]];
    if (token?.lstrip && before?.added === null) {
      part.start = before.end = before.start + text.slice(before.start, before.end).trimEnd().length;
      name(before); // without its blanks it may be an added token, too
    }
    if (token?.rstrip && after) {
      part.end = after.start = after.end - text.slice(after.start, after.end).trimStart().length;
    }
  }
  return parts;
}

/** The sign by which the pre-tokenizer writes a blank; null if blanks are no part of words. */
function blankOf(steps: Step[]): string | null {
  const step = steps.find(({ type }) => type === "ByteLevel" || type === "Metaspace");
  return !step ? null : step.type === "ByteLevel" ? BYTE_LEVEL : (step.replacement ?? "▁");
}

function stepsOf(step: Step | null | undefined): Step[] {
  return step ? [step, ...[...(step.pretokenizers ?? []), ...(step.processors ?? [])].flatMap(stepsOf)] : [];
}

/** Null if a character is normalised by its neighbours, other than by marks that combine with it. */
function normalise({ normalizer }: Tokenizer, text: string): Normalised | null {
  const sources: number[] = [];
  let [joined, at] = ["", 0];
  for (const [cluster] of text.matchAll(CLUSTER)) {
    const characters = Array.from(cluster);
    const whole = normalizer ? normalizer(cluster) : cluster;
    const parts = characters.map((character) => (normalizer ? normalizer(character) : character));
    if (parts.join("") === whole) parts.forEach((part, place) => sources.push(...Array<number>(part.length).fill(at + place)));
    else sources.push(...Array<number>(whole.length).fill(at));
    joined += whole;
    at += characters.length;
  }
  return joined === (normalizer && text ? normalizer(text) : text) ? { text: joined, sources } : null;
}

/**
 * Find a word in the text, from a place on. Blanks before it may be skipped, and a blank at its start may have been added: then it has the
 * place of the character after it. Null if the text goes on with something else.
 */
function located(word: string, text: string, at: number, blank: string | null, isSplit: boolean): (Piece & { end: number }) | null {
  const isBytes = blank === BYTE_LEVEL;
  const spaced = (each: string) => (blank === null || isBytes || isSplit ? each : each.replaceAll(blank, " "));
  const { surface, starts, ends } = isBytes ? ofBytes(word) : ofText(spaced(word));
  const own = spaced(text);
  BLANKS.lastIndex = at;
  const next = at + BLANKS.exec(text)![0].length;
  const mayBeAdded = surface.startsWith(isSplit && blank !== null && !isBytes ? blank : " ");
  for (const added of !mayBeAdded ? [0] : isSplit && isBytes ? [1, 0] : [0, 1]) {
    const place = [at, next].find((each) => own.startsWith(surface.slice(added), each));
    if (place === undefined) continue;
    const first = added ? String.fromCodePoint(text.codePointAt(place) ?? 0).length : 0;
    return {
      starts: starts.map((unit) => place + Math.max(0, unit - added)),
      ends: ends.map((unit) => place + Math.max(first, unit - added)),
      end: place + surface.length - added,
    };
  }
  return null;
}

function ofText(surface: string): Piece & { surface: string } {
  const starts = Array.from({ length: surface.length }, (_, unit) => unit);
  return { surface, starts, ends: starts.map((unit) => unit + 1) };
}

/** A word in which each unit is a byte. */
function ofBytes(word: string): Piece & { surface: string } {
  const surface = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(word, (sign) => BYTES.get(sign)!));
  const [starts, ends]: [number[], number[]] = [[], []];
  let at = 0;
  for (const character of surface) {
    const bytes = new TextEncoder().encode(character).length;
    starts.push(...Array<number>(bytes).fill(at));
    ends.push(...Array<number>(bytes).fill(at + character.length));
    at += character.length;
  }
  return { surface, starts, ends };
}

/** The units of each token of a word; null if together they are not the word. */
function surfaces(model: Model, word: string, { model: section = {} }: Sections): [from: number, to: number][] | null {
  const { continuing_subword_prefix: prefix, end_of_word_suffix: suffix, byte_fallback: fallsBack } = section;
  const [tokens, found] = [model.encode([word]), new Array<[number, number]>()];
  const idOf = (token: string) => model.tokens_to_ids.get(token) ?? model.unk_token_id;
  const isUnknown = (token: string | undefined) => token !== undefined && idOf(token) === model.unk_token_id;
  let at = 0;
  let bytes = 0; // tokens so far of the character at this place
  for (const [index, token] of tokens.entries()) {
    let own = index > 0 && prefix && token.startsWith(prefix) ? token.slice(prefix.length) : token;
    if (suffix && index === tokens.length - 1 && own.endsWith(suffix)) own = own.slice(0, -suffix.length);
    const character = String.fromCodePoint(word.codePointAt(at) ?? 0);
    const place: [number, number] = [at, at + (word.startsWith(own, at) ? own : character).length];
    if (fallsBack && BYTE_TOKEN.test(token) && !word.startsWith(own, at)) {
      if (++bytes === new TextEncoder().encode(character).length) [at, bytes] = [place[1], 0];
    } else if (word.startsWith(own, at) || token === model.unk_token) at = place[1];
    else return null;
    if (model.fuse_unk && isUnknown(token) && isUnknown(tokens[index - 1])) found.at(-1)![1] = place[1];
    else found.push(place);
  }
  return at === word.length ? found : null;
}

/** A place without the blanks at the ends of its token. */
function trimmed([start, end]: [number, number], token: string, index: number, addsBlank: boolean): [number, number] {
  const blanks = (text: string) => /^[Ġ\s]*/.exec(text)![0].length;
  const [leading, trailing] = [blanks(token), blanks([...token].reverse().join(""))];
  const first = addsBlank && (index === 0 || start === 0) ? start : Math.min(start + leading, end);
  return [first, trailing && end >= trailing ? Math.max(end - trailing, first) : end];
}

function byteTable(): Map<string, number> {
  const isOwn = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  let next = 0x100;
  return new Map(Array.from({ length: 256 }, (_, byte) => [String.fromCharCode(isOwn(byte) ? byte : next++), byte]));
}
