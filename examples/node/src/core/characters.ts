/** Where tokens stand in their text. The tokenizer library does not say it, so its steps are followed once more. */
import type { Tokenizer } from "@huggingface/tokenizers";

/** For each token its first character and the one behind its last, in Unicode characters from 0. */
export type Characters = [start: number, end: number][];

/** A text after normalisation, and of each UTF-16 unit the character of the text that it came from. */
interface Normalised {
  text: string;
  sources: number[];
}

/**
 * The places of tokens of words that stand in the normalised text, as those of WordPiece do; null where they are made
 * otherwise (bytes, added tokens in the text), or a character is normalised by its neighbours.
 *
 * @param prefix what the tokenizer writes before tokens that go on with a word.
 */
export function charactersOf(tokenizer: Tokenizer, prefix: string, text: string, tokens: string[]): Characters | null {
  const normalised = normalise(tokenizer, text);
  const { pre_tokenizer: split, model } = tokenizer;
  if (normalised === null || !split || !model) return null;
  const found: Characters = [];
  const again: string[] = [];
  let at = 0;
  for (const word of normalised.text ? split(normalised.text) : []) {
    const start = normalised.text.indexOf(word, at);
    if (start < 0 || normalised.text.slice(at, start).trim()) return null;
    const own = model([word]);
    const lengths = own.length === 1 ? [word.length] : surfaces(own, prefix, word);
    if (lengths === null) return null;
    again.push(...own);
    at = start;
    for (const length of lengths) {
      found.push([normalised.sources[at]!, normalised.sources[at + length - 1]! + 1]);
      at += length;
    }
  }
  return String(again) === String(tokens) ? found : null;
}

function normalise({ normalizer }: Tokenizer, text: string): Normalised | null {
  const pieces = Array.from(text, (character) => (normalizer ? normalizer(character) : character));
  const joined = pieces.join("");
  if (joined !== (normalizer && text ? normalizer(text) : text)) return null;
  return { text: joined, sources: pieces.flatMap((piece, at) => Array<number>(piece.length).fill(at)) };
}

/** How long each token of a word is; null if together they are not the word. */
function surfaces(tokens: string[], prefix: string, word: string): number[] | null {
  const own = tokens.map((token, at) => (at > 0 && token.startsWith(prefix) ? token.slice(prefix.length) : token));
  return own.join("") === word ? own.map((surface) => surface.length) : null;
}
