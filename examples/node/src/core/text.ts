/** Texts to inputs, and logits to labels. */
import { Tokenizer } from "@huggingface/tokenizers";
import { Tensor } from "onnxruntime-common";

import type { Bundle } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";

export interface Scored {
  label: string;
  probability: number;
}

/** The bundle's tokenizer. */
export class TextInputs {
  private constructor(
    private readonly bundle: Bundle,
    private readonly tokenizer: Tokenizer,
    private readonly maxTokens: number,
  ) {}

  static async open(bundle: Bundle): Promise<TextInputs> {
    const text = bundle.manifest.text;
    if (!text) throw new Fault({ what: "the bundle has no tokenizer", fix: "give ids" });
    const config = JSON.parse(new TextDecoder().decode(await bundle.read(text.tokenizer))) as object;
    return new TextInputs(bundle, new Tokenizer(config, {}), text.max_tokens);
  }

  /** The inputs of a batch, padded to its longest text. */
  batch(texts: string[]): Inputs {
    const rows = texts.map((text) => this.ids(text));
    const tokens = Math.max(...rows.map((row) => row.length));
    const columns: Record<string, (row: number[], at: number) => number> = {
      input_ids: (row, at) => row[at] ?? 0,
      attention_mask: (row, at) => Number(at < row.length),
      token_type_ids: () => 0,
    };
    return Object.fromEntries(
      this.bundle.manifest.inputs.map(({ name, dtype }) => {
        const column = columns[name];
        if (!column || dtype !== "int64") throw new Fault({ what: "an input that no text gives", where: `\`${name}\`` });
        const values = rows.flatMap((row) => [...Array(tokens).keys()].map((at) => BigInt(column(row, at))));
        return [name, new Tensor("int64", BigInt64Array.from(values), [rows.length, tokens])];
      }),
    );
  }

  private ids(text: string): number[] {
    const { ids } = this.tokenizer.encode(text);
    if (ids.length <= this.maxTokens) return ids;
    const [found, expected] = [`${ids.length} tokens`, `at most ${this.maxTokens}`];
    throw new Fault({ what: "a text is too long for the base", found, expected, fix: "shorten it" });
  }
}

/** The classes of one row with their probabilities, the likeliest first. */
export function softmax(logits: Float32Array, labels: string[]): Scored[] {
  const own = logits.subarray(0, labels.length);
  const highest = Math.max(...own);
  const powers = Array.from(own, (logit) => Math.exp(logit - highest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  const scored = labels.map((label, at) => ({ label, probability: powers[at]! / total }));
  return scored.sort((one, other) => other.probability - one.probability);
}
