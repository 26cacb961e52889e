"""Run a bundle with onnxruntime alone: nothing of this project is imported.

    python plain_onnxruntime.py bundle                              # hold the bundle against its golden vectors
    python plain_onnxruntime.py bundle "Who wrote Hamlet?" "Dull."  # and classify texts with every adapter

ONNX Runtime activates adapters in float32, which is what `build` writes unless it is given `--adapter-precision`.
Needs `pip install onnxruntime numpy`, and `tokenizers` for texts. Exit code 0 if all golden vectors hold, 1 if not.
"""

from __future__ import annotations

import hashlib
import json
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
        self.adapters = {record["name"]: self.load(record["onnx_adapter"]) for record in self.manifest["adapters"]}

    def verify_hashes(self) -> None:
        """Most damaged weights run without a word: look before they do."""
        for record in self.manifest["files"]:
            if hashlib.sha256((self.folder / record["path"]).read_bytes()).hexdigest() != record["sha256"]:
                sys.exit(f"{record['path']} has been changed or damaged since it was written")

    def load(self, path: str) -> ort.LoraAdapter:
        adapter = ort.LoraAdapter()
        adapter.Load(str(self.folder / path))
        return adapter

    def run(self, inputs: dict[str, np.ndarray], adapter: str | None = None) -> dict[str, np.ndarray]:
        """Every call says which adapter it wants; none is the base. Never activate two in one call."""
        for record in self.manifest["inputs"]:
            for axis, length in zip(record["axes"], inputs[record["name"]].shape, strict=True):
                if not is_allowed(length, lengths_of(self.manifest, axis)):
                    sys.exit(f"`{record['name']}` has {length} along `{axis}`: {lengths_of(self.manifest, axis)}")
        options = ort.RunOptions()
        if adapter is not None:
            options.add_active_adapter(self.adapters[adapter])
        names = [output["name"] for output in self.manifest["outputs"]]
        return dict(zip(names, self.session.run(names, inputs, options), strict=True))


def check_golden(bundle: PlainBundle) -> bool:
    """Compare with the outputs that the reference computed when the bundle was built."""
    everything = [(None, bundle.manifest["golden"])]
    everything += [(record["name"], record["golden"]) for record in bundle.manifest["adapters"]]
    good = True
    for adapter, golden in everything:
        tensors = read_safetensors(bundle.folder / golden["path"])
        worst = 0.0
        for case in golden["cases"]:
            inputs = {i["name"]: tensors[f"{case}.input.{i['name']}"] for i in bundle.manifest["inputs"]}
            outputs = bundle.run(inputs, adapter)
            for name, allowed in golden["absolute"].items():
                expected = tensors[f"{case}.output.{name}"]
                same_shape = outputs[name].shape == expected.shape
                deviation = float(np.abs(outputs[name] - expected).max()) if same_shape else np.inf
                good = good and deviation <= allowed  # NaN fails
                worst = max(worst, deviation / allowed if allowed else deviation)
        print(f"{adapter or 'base':>12}  {len(golden['cases'])} golden vectors, {worst:.0%} of the allowed deviation")
    return good


def tokenize(bundle: PlainBundle, text: str, task: dict) -> dict[str, np.ndarray]:
    from tokenizers import Tokenizer

    record = bundle.manifest["text"] or sys.exit("this bundle has no tokenizer")
    tokenizer = Tokenizer.from_file(str(bundle.folder / record["tokenizer"]))
    tokenizer.no_padding()  # the file may ask for fixed lengths
    lengths = token_lengths(bundle)
    limit = min(task.get("max_tokens") or lengths["maximum"], lengths["maximum"])
    tokenizer.enable_truncation(limit, direction=task["truncation"])
    encoding = tokenizer.encode(text)
    columns = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }
    count = len(encoding.ids)
    width = next((n for n in range(count, lengths["maximum"] + 1) if is_allowed(n, lengths)), None)
    may_pad = bundle.manifest["padding_neutral"] and "attention_mask" in [i["name"] for i in bundle.manifest["inputs"]]
    if width is None or (width > count and not may_pad):
        sys.exit(f"a text of {count} tokens: the base takes {lengths}, and padding would change its results")
    # what a row is filled up with is hidden by the mask
    return {
        i["name"]: np.array([columns[i["name"]] + [0] * (width - count)], i["dtype"]) for i in bundle.manifest["inputs"]
    }


def is_allowed(length: int, lengths: dict) -> bool:
    inside = lengths["minimum"] <= length <= (lengths["maximum"] or length)
    return inside and length % lengths["multiple_of"] == 0 and length not in lengths["exceptions"]


def token_lengths(bundle: PlainBundle) -> dict:
    axis = next(i["axes"][1] for i in bundle.manifest["inputs"] if i["name"] == "input_ids")
    return lengths_of(bundle.manifest, axis)


def lengths_of(manifest: dict, axis: int | str) -> dict:
    """An axis with a number has that length alone, one with a name those of the record, or any."""
    ends = (axis, axis) if isinstance(axis, int) else (1, None)
    free = {"minimum": ends[0], "maximum": ends[1], "multiple_of": 1, "exceptions": []}
    return free | manifest["lengths"].get(axis, {})  # what is not said there is free


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
