"""Run a bundle with plain onnxruntime, without importing this project.

    python plain_onnxruntime.py bundle                              # compare the bundle with its golden vectors
    python plain_onnxruntime.py bundle "Who wrote Hamlet?" "Dull."  # and classify texts with every adapter

For the rules see docs/reference/format.md, "What may share a call". Each text is a separate call, so rows never share a
batch. A text is padded after its tokens to a supported length if that has no effect, and rejected otherwise.

Needs `pip install onnxruntime numpy`, and `tokenizers` for texts. Exit code 0 if all golden vectors pass, 1 if not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, or it reports to Microsoft
import onnxruntime as ort

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "<i1", "U8": "<u1", "BOOL": "?"}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """8 bytes with the length of a JSON header, the header, the tensors."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[start + record["data_offsets"][0] : start + record["data_offsets"][1]],
                            DTYPES[record["dtype"]]).reshape(record["shape"])
        for name, record in header.items()
    }  # fmt: skip


class PlainBundle:
    """A graph, and adapters that are switched from call to call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = (folder / "manifest.json").read_bytes()
        self.manifest = json.loads(data)
        digits = self.manifest.get("checksum", "")  # of these bytes, with zeros in its own place
        if digits and hashlib.sha256(data.replace(digits.encode(), b"0" * 64)).hexdigest() != digits:
            sys.exit("manifest.json has been changed or damaged since it was written")
        self.verify_hashes()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # onnxruntime warns once for each slot otherwise
        graph = folder / self.manifest["graphs"]["slots"]
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        # RunOptions does not keep an adapter alive: hold on to every one for as long as it may run
        self.records = {record["name"]: record for record in self.manifest["adapters"]}
        self.adapters = {name: self.load(record) for name, record in self.records.items()}

    def verify_hashes(self) -> None:
        """Most damaged weights run without a word: look before they do."""
        for record in self.manifest["files"]:
            if hashlib.sha256((self.folder / record["path"]).read_bytes()).hexdigest() != record["sha256"]:
                sys.exit(f"{record['path']} has been changed or damaged since it was written")

    def load(self, record: dict) -> ort.LoraAdapter | None:
        """ONNX Runtime activates adapters whose files are float32; of others the tensors are fed."""
        if record.get("precision", "float32") != "float32":
            return None
        adapter = ort.LoraAdapter()
        adapter.Load(str(self.folder / record["onnx_adapter"]))
        return adapter

    def tensors(self, adapter: str) -> dict[str, np.ndarray]:
        """A float32 tensor for every slot. An int8 one is its product with the scale for its last axis."""
        stored = read_safetensors(self.folder / self.records[adapter]["safetensors"])
        scales = {name: stored.pop(f"{name}.scale") for name in list(stored) if f"{name}.scale" in stored}
        return {
            name: (array.astype(np.float64) * scales[name] if name in scales else array).astype(np.float32)
            for name, array in stored.items()
        }

    def may_pad(self, adapter: str | None) -> bool:
        """Return whether padding changes neither the base nor this adapter."""
        slots = [slot for slot in self.manifest["slots"] if slot["graph"] in self.manifest["counts_padding"]]
        if not self.manifest["padding_neutral"] or adapter is None or not slots:
            return self.manifest["padding_neutral"]
        tensors = self.tensors(adapter)
        return all(
            list(tensors[slot["name"]].shape) == slot["neutral"]
            and (tensors[slot["name"]] == slot.get("neutral_value", 0)).all()
            for slot in slots
        )

    def run(self, inputs: dict[str, np.ndarray], adapter: str | None = None) -> dict[str, np.ndarray]:
        """Run the graph with one adapter, or the base; never activate two adapters in one call.

        Inputs of a length that the base does not take are padded to the next one; outputs are as long as that.
        """
        inputs = self.padded(inputs, adapter)
        options, fed = ort.RunOptions(), {}
        if adapter is not None and self.adapters[adapter] is None:
            fed = self.tensors(adapter)
        elif adapter is not None:
            options.add_active_adapter(self.adapters[adapter])
        names = [output["name"] for output in self.manifest["outputs"]]
        return dict(zip(names, self.session.run(names, {**inputs, **fed}, options), strict=True))

    def padded(self, inputs: dict[str, np.ndarray], adapter: str | None) -> dict[str, np.ndarray]:
        """Pad each axis after its tokens, with zeros, which hide them in the mask."""
        records = self.manifest["inputs"]
        masked = {axis for record in records if record["role"] == "mask" for axis in record["axes"][1:]}
        found = {}
        for record in records:
            array, behind = inputs[record["name"]], []
            for axis, length in zip(record["axes"], array.shape, strict=True):
                lengths = lengths_of(self.manifest, axis)
                wanted = length if record["role"] == "cache" else next_length(length, lengths)  # a cache may be empty
                if wanted is None or (wanted > length and not (axis in masked and self.may_pad(adapter))):
                    sys.exit(f"`{record['name']}` has {length} along `{axis}` and may not be padded: {lengths}")
                behind.append((0, wanted - length))
            found[record["name"]] = np.pad(array, behind)
        return found


def check_golden(bundle: PlainBundle) -> bool:
    """Compare with the outputs that the reference computed when the bundle was built."""
    everything = [(None, bundle.manifest["golden"])]
    everything += [(record["name"], record["golden"]) for record in bundle.manifest["adapters"]]
    sketches, good = bundle.manifest.get("sketches") or {}, True
    if sketches.keys() - {output["name"] for output in bundle.manifest["outputs"]}:
        sys.exit(f"`sketches` names outputs that this bundle does not have: {', '.join(sketches)}")
    for adapter, golden in everything:
        tensors = read_safetensors(bundle.folder / golden["path"])
        worst = 0.0
        for case in golden["cases"]:
            outputs = bundle.run(inputs_of(bundle.manifest["inputs"], tensors, case), adapter)
            for name in outputs.keys() & sketches.keys():
                outputs[name] = sketch(outputs[name], sketches[name])
            for name, allowed in golden["absolute"].items():
                expected = tensors[f"{case}.output.{name}"]
                same_shape = outputs[name].shape == expected.shape
                deviation = float(np.abs(outputs[name] - expected).max()) if same_shape else np.inf
                good = good and deviation <= allowed  # NaN fails
                worst = max(worst, deviation / allowed if allowed else deviation)
        print(f"{adapter or 'base':>12}  {len(golden['cases'])} golden vectors, {worst:.0%} of the allowed deviation")
    return good


def inputs_of(records: list[dict], tensors: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    """Return the inputs of a golden vector; large ones are stored as a seed and a shape."""
    inputs = {}
    for record in records:
        fill = tensors.get(f"{case}.fill.{record['name']}")
        if fill is None:
            inputs[record["name"]] = tensors[f"{case}.input.{record['name']}"]
        elif fill.dtype == np.int64 and fill.shape == (1 + len(record["axes"]),):
            inputs[record["name"]] = filled(*fill.tolist()).astype(record["dtype"])
        else:
            sys.exit(f"`{case}.fill.{record['name']}` is not a seed and the shape of this input")
    return inputs


def filled(seed: int, *shape: int) -> np.ndarray:
    """Return multiples of 1/64 in [-2, 2) that depend on a seed."""
    if not 0 <= seed < 2**32 or min(shape, default=0) < 0 or math.prod(shape) > 2**26:
        sys.exit(f"a golden input has a seed or a shape out of range: {seed}, {list(shape)}")
    numbers = mix(seed + np.arange(math.prod(shape), dtype=np.uint64)) >> 24
    return (numbers / 64 - 2).reshape(shape)


def sketch(output: np.ndarray, record: dict) -> np.ndarray:
    """Return the numbers that golden data have in place of each row of a wide output.

    These are its largest numbers (NaN first), numbers at chosen columns, and signed sums of all of them.
    """
    leading, largest, columns = output.shape[: record["axes"]], record["largest"], record["columns"]
    rows = output.astype(np.float32).reshape(math.prod(leading), -1)
    count, width = rows.shape
    found = np.zeros((count, largest + columns + sum(record["moduli"])), np.float32)
    if largest:  # the last one is repeated in a row with fewer numbers
        most = min(largest, width)
        descending = np.sort(np.partition(rows, -most)[:, -most:])[:, ::-1]
        found[:, :largest] = np.pad(descending, ((0, 0), (0, largest - most)), "edge")
    chosen = mix(np.arange(count * columns, dtype=np.uint64)).reshape(count, columns) % width
    found[:, largest : largest + columns] = np.take_along_axis(rows, chosen.astype(np.int64), axis=1)
    start = largest + columns
    for at, modulus in enumerate(record["moduli"]):
        signs = 1 - 2.0 * (mix(mix(np.array([at + 1])).astype(np.uint64) + np.arange(width, dtype=np.uint64)) >> 31)
        terms = -(-width // modulus)
        products = np.zeros((terms, modulus))
        for row, sums in zip(rows, found[:, start : start + modulus], strict=True):
            products.flat[:width] = row * signs
            sums[:] = products.sum(axis=0) / (2 * math.sqrt(terms))
        start += modulus
    return found.reshape(*leading, -1)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hash 32-bit integers; larger ones count modulo 2^32."""
    x = numbers.astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def tokenize(bundle: PlainBundle, text: str, task: dict) -> dict[str, np.ndarray]:
    from tokenizers import Tokenizer

    record = bundle.manifest["text"] or sys.exit("this bundle has no tokenizer")
    tokenizer = Tokenizer.from_file(str(bundle.folder / record["tokenizer"]))
    tokenizer.no_padding()  # the file may ask for fixed lengths
    if task["tokenizer"] not in (None, record["digest"]):
        sys.exit("an adapter was trained with another tokenizer, which gives it other ids")
    most = token_lengths(bundle)["maximum"]
    tokenizer.enable_truncation(min(task["max_tokens"] or most, most), direction=task["truncation"])
    encoding = tokenizer.encode(text)
    if not encoding.ids:
        sys.exit("a text has no tokens")
    columns = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }
    names = [i["name"] for i in bundle.manifest["inputs"]]
    if not set(names) <= set(columns):
        sys.exit(f"text does not fill all inputs of this base: {', '.join(names)}")
    return {i["name"]: np.array([columns[i["name"]]], i["dtype"]) for i in bundle.manifest["inputs"]}


def is_allowed(length: int, lengths: dict) -> bool:
    inside = lengths["minimum"] <= length <= (lengths["maximum"] or length)
    return inside and length % lengths["multiple_of"] == 0 and length not in lengths["exceptions"]


def next_length(length: int, lengths: dict) -> int | None:
    """Return the smallest allowed length that is no smaller, or `None`."""
    last = lengths["maximum"] or length + lengths["multiple_of"] * (1 + len(lengths["exceptions"]))
    return next((n for n in range(length, last + 1) if is_allowed(n, lengths)), None)


def token_lengths(bundle: PlainBundle) -> dict:
    axis = next(i["axes"][1] for i in bundle.manifest["inputs"] if i["name"] == "input_ids")
    return lengths_of(bundle.manifest, axis)


def lengths_of(manifest: dict, axis: int | str) -> dict:
    """Return the supported lengths of an axis: its number, or those of its record, or any."""
    ends = (axis, axis) if isinstance(axis, int) else (1, None)
    free = {"minimum": ends[0], "maximum": ends[1], "multiple_of": 1, "exceptions": []}
    return free | manifest["lengths"].get(axis, {})


def classify(bundle: PlainBundle, text: str) -> None:
    print(text)
    for record in bundle.manifest["adapters"]:
        task = record["task"]
        if task is not None and (task["type"], task["input"]) == ("single_label", "text"):
            inputs = tokenize(bundle, text, task)
            logits = bundle.run(inputs, record["name"])[record["output"]][0]
            probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            best = int(probabilities.argmax())
            print(f"{record['name']:>12}  {task['labels'][best]}  {probabilities[best]:.2f}")


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    bundle = PlainBundle(Path(arguments[0]))
    good = check_golden(bundle)
    for text in arguments[1:]:
        classify(bundle, text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
