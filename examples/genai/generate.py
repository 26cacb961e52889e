"""Generate text with a bundle: with no adapter, with each, and with a switch halfway.

    python examples/genai/generate.py bundle --prompt "w5 w9 w33 w71" [--tokens 16]

With plain onnxruntime and the cache in a loop, and where it is installed with onnxruntime-genai. Both choose the most
likely token, and both switch between the same files, so they must write the same text.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

Choice = str | None
"""An adapter, or none."""

Generate = Callable[[list[int], list[Choice]], list[int]]
"""From a prompt, and which adapter makes each new token, to the new tokens; without the one that ends the text."""


def genai_generator(bundle: Path, adapters: Mapping[str, Path]) -> Generate:
    """With onnxruntime-genai: the bundle is a folder that it loads, and its `Adapters` take our files."""
    import onnxruntime_genai as genai

    model = genai.Model(str(bundle))
    loaded = genai.Adapters(model)
    for name, path in adapters.items():
        loaded.load(str(path), name)

    def generate(prompt: list[int], choices: list[Choice]) -> list[int]:
        options = genai.GeneratorParams(model)
        options.set_search_options(do_sample=False, max_length=len(prompt) + len(choices))
        generator = genai.Generator(model, options)
        active: Choice = None
        for index, choice in enumerate(choices):
            if choice != active:
                if choice is None:  # an adapter is replaced by another one, but never taken off
                    raise ValueError("onnxruntime-genai cannot go back to no adapter: begin a new generator")
                generator.set_active_adapter(loaded, choice)
                active = choice
            if index == 0:
                generator.append_tokens(np.array([prompt], np.int32))
            generator.generate_next_token()
            if generator.is_done():
                break
        return [int(token) for token in generator.get_sequence(0)][len(prompt) :]

    return generate


class CachedGraph:
    """A bundle's graph in plain onnxruntime, one text at a time; the manifest says what its inputs are for."""

    def __init__(self, bundle: Path, adapters: Mapping[str, Path]) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        options = ort.SessionOptions()
        options.log_severity_level = 3  # or it warns of each tensor that can be overridden
        graph = bundle / manifest["graphs"]["slots"]
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.roles = {record["name"]: record["role"] for record in manifest["inputs"]}
        self.next = {record["name"]: record["next"] for record in manifest["inputs"] if record["role"] == "cache"}
        self.empty = {
            record["name"]: np.zeros([1, *(axis if isinstance(axis, int) else 0 for axis in record["axes"][1:])], "f4")
            for record in manifest["inputs"]
            if record["role"] == "cache"
        }
        self.ends = ends_of(bundle)
        self.adapters = {}
        for name, path in adapters.items():
            self.adapters[name] = ort.LoraAdapter()
            self.adapters[name].Load(str(path))

    def generate(self, prompt: list[int], choices: list[Choice]) -> list[int]:
        """Feed the prompt once, then each new token; the cache contains earlier tokens."""
        tokens, fresh, cache = list(prompt), list(prompt), dict(self.empty)
        for choice in choices:
            outputs = self.step(fresh, len(tokens), cache, choice)
            cache = {name: outputs[output] for name, output in self.next.items()}
            fresh = [int(outputs["logits"][0, -1].argmax())]
            if fresh[0] in self.ends:
                break
            tokens += fresh
        return tokens[len(prompt) :]

    def step(
        self, fresh: list[int], total: int, cache: Mapping[str, np.ndarray], choice: Choice
    ) -> dict[str, np.ndarray]:
        """Compute all outputs for new tokens behind a past; the mask covers both."""
        made = {"ids": np.array([fresh], np.int64), "mask": np.ones((1, total), np.int64)}
        feeds = {name: cache[name] if role == "cache" else made[role] for name, role in self.roles.items()}
        options = ort.RunOptions()
        if choice is not None:
            options.add_active_adapter(self.adapters[choice])
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feeds, options), strict=True))


def ends_of(bundle: Path) -> list[int]:
    """The tokens that end a text, where the bundle says it."""
    config = bundle / "genai_config.json"
    found = json.loads(config.read_text(encoding="utf-8"))["model"]["eos_token_id"] if config.is_file() else []
    return found if isinstance(found, list) else [found]


def plans(names: list[str], tokens: int) -> dict[str, list[Choice]]:
    """Return plans of one adapter per token: the base, each adapter, and the first one followed by the second."""
    found: dict[str, list[Choice]] = {"no adapter": [None] * tokens, **{name: [name] * tokens for name in names}}
    if len(names) > 1:
        first, second, *_ = names
        found[f"{first}, then {second}"] = [first] * (tokens // 2) + [second] * (tokens - tokens // 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    bundle: Path = arguments.bundle
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    adapters = {record["name"]: bundle / record["onnx_adapter"] for record in manifest["adapters"]}
    tokenizer = Tokenizer.from_file(str(bundle / manifest["text"]["tokenizer"]))
    prompt = tokenizer.encode(arguments.prompt).ids
    programs: dict[str, Generate] = {"onnxruntime": CachedGraph(bundle, adapters).generate}
    if importlib.util.find_spec("onnxruntime_genai") and (bundle / "genai_config.json").is_file():
        programs["onnxruntime-genai"] = genai_generator(bundle, adapters)
    for name, choices in plans(list(adapters), arguments.tokens).items():
        texts = {program: generate(prompt, choices) for program, generate in programs.items()}
        print(f"{name}: {tokenizer.decode(texts['onnxruntime'])}")
        for program, text in texts.items():
            if text != texts["onnxruntime"]:
                raise SystemExit(f"{program} writes something else: {tokenizer.decode(text)}")
    print(f"the same with {' and '.join(programs)}")


if __name__ == "__main__":
    main()
