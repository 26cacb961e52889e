/** Texts to inputs. */
import { Tokenizer } from "@huggingface/tokenizers";
import { Tensor } from "onnxruntime-common";

import type { Bundle } from "./bundle.js";
import { Fault } from "./fault.js";
import type { Inputs } from "./request.js";

/** What each input of a base that reads texts holds. */
const COLUMNS: Record<string, (row: number[], at: number) => number> = {
  input_ids: (row, at) => row[at] ?? 0,
  attention_mask: (row, at) => Number(at < row.length),
  token_type_ids: () => 0,
};

/** The bundle's tokenizer. */
export class TextInputs {
  private constructor(
    private readonly bundle: Bundle,
    private readonly tokenizer: Tokenizer,
    private readonly maxTokens: number,
  ) {}

  static async open(bundle: Bundle): Promise<TextInputs> {
    const text = bundle.manifest.text;
    if (!text) throw new Fault({ what: "the bundle has no tokenizer", fix: "give arrays" });
    const config = JSON.parse(new TextDecoder().decode(await bundle.read(text.tokenizer))) as object;
    return new TextInputs(bundle, new Tokenizer(config, {}), text.max_tokens);
  }

  /** The inputs of a batch, padded to its longest text; longer ones than the base takes are cut. */
  batch(texts: string[]): Inputs {
    const rows = texts.map((text) => this.ids(text));
    const tokens = Math.max(...rows.map((row) => row.length));
    const records = this.bundle.manifest.inputs;
    if (!records.some(({ name }) => name === "attention_mask") && rows.some((row) => row.length < tokens)) {
      throw new Fault({ what: "texts of different lengths for a base without a mask", fix: "give one text at a time" });
    }
    return Object.fromEntries(
      records.map(({ name, dtype }) => {
        const column = COLUMNS[name];
        if (!column || dtype !== "int64") throw new Fault({ what: "an input that no text gives", where: `\`${name}\`` });
        const values = rows.flatMap((row) => Array.from({ length: tokens }, (_, at) => BigInt(column(row, at))));
        return [name, new Tensor("int64", BigInt64Array.from(values), [rows.length, tokens])];
      }),
    );
  }

  /** The ids of a text, cut to what the base takes; the special tokens around it stay. */
  private ids(text: string): number[] {
    const ids: number[] = this.tokenizer.encode(text).ids;
    if (ids.length <= this.maxTokens) return ids;
    const own: number[] = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    const before = ids.findIndex((_, start) => own.every((id, at) => ids[start + at] === id));
    const around = ids.length - own.length;
    return [...ids.slice(0, before), ...own.slice(0, this.maxTokens - around), ...ids.slice(before + own.length)];
  }
}
