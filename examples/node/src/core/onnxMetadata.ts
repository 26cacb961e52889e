/** Reads the metadata of an ONNX file, which this binding of ONNX Runtime does not expose. */

/** The fields, by their numbers in onnx.proto: of the model, and of an entry of its metadata. */
const METADATA = 14;
const [KEY, VALUE] = [1, 2];

/** The text under a key in the metadata of a model; null if there is none. Throws a RangeError if the bytes are not an ONNX file. */
export function metadataOf(model: Uint8Array, key: string): string | null {
  for (const [number, entry] of fields(model)) {
    if (number !== METADATA) continue;
    const found = new Map(fields(entry));
    if (text(found.get(KEY)) === key) return text(found.get(VALUE));
  }
  return null;
}

function text(bytes: Uint8Array | undefined): string {
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes ?? new Uint8Array());
}

/** The fields of a protobuf message that hold bytes. */
function* fields(bytes: Uint8Array): Generator<[number: number, bytes: Uint8Array]> {
  let at = 0;
  const varint = (): number => {
    for (let found = 0, factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      if (byte === undefined || factor > 2 ** 63) throw new RangeError("a field that is cut off");
      found += (byte % 128) * factor;
      if (byte < 128) return found;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const [number, kind] = [Math.floor(tag / 8), tag % 8];
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (length > bytes.length - at) throw new RangeError("a field that is cut off");
      yield [number, bytes.subarray(at, at + length)];
      at += length;
    } else throw new RangeError(`a field of the unknown kind ${kind}`);
  }
}
