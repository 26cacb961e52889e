"""Chat streams of a server, each with a LoRA of its own: eight at a time beside one after the other, and with schemas.

    python benchmarks/streams.py
    python benchmarks/streams.py --width 1024 --layers 12 --streams 16

The model is a Llama with random weights and a tokenizer with byte-level merges. The server computes on one thread; its
clients are those of OpenAI. Processor times are those of the server. Every way gets the same texts, those with a schema
other ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
import psutil
from generation import save_llama, with_adapters
from kit.machine import description, load_average, warn_if_busy
from kit.tables import Table, spread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TOKENS, SPECIAL = 64, ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"type": "string"}, "minItems": 1000}},
    "required": ["names"],
    "additionalProperties": False,
}
ONE, TOGETHER, GUIDED = "one after the other", "at a time", "at a time, with a JSON schema"

Ask = Callable[[str, dict[str, Any]], int]
"""Reads the stream of an adapter to its end, and returns the number of its tokens."""


@dataclass
class Way:
    """Seconds of the clock and of the server's processor for a token, by round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--streams", type=int, default=8, help="each with an adapter of its own")
    parser.add_argument("--words", type=int, default=8192, help="tokens of the vocabulary")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    load = load_average()
    warn_if_busy(load)
    with TemporaryDirectory(prefix="streams-") as folder:
        bundle = _bundle(Path(folder), given)
        with _server(bundle) as (process, port):
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600)
            ways = _measured(_asking(client), process, [f"a{number}" for number in range(given.streams)], given.rounds)
    print(description(load, "cpu"), _table(ways, given).markdown(), sep="\n\n")


def _measured(ask: Ask, process: psutil.Process, names: Sequence[str], rounds: int) -> dict[str, Way]:
    guided = {"response_format": {"type": "json_schema", "json_schema": {"name": "names", "schema": SCHEMA}}}
    with ThreadPoolExecutor(len(names)) as clients:

        def together(options: dict[str, Any]) -> list[int]:
            return list(clients.map(lambda name: ask(name, options), names))

        calls: dict[str, Callable[[], list[int]]] = {
            ONE: lambda: [ask(name, {}) for name in names],
            TOGETHER: lambda: together({}),
            GUIDED: lambda: together(guided),
        }
        ways = {name: Way() for name in calls}
        for call in calls.values():
            call()  # loads adapters, and compiles the schema
        for _ in range(rounds):
            for name, call in calls.items():
                began, before = time.perf_counter(), _processor_seconds(process)
                tokens = sum(call())
                ways[name].wall.append((time.perf_counter() - began) / tokens)
                ways[name].processor.append((_processor_seconds(process) - before) / tokens)
    return ways


def _table(ways: dict[str, Way], given: argparse.Namespace) -> Table:
    lines = []
    for name, way in ways.items():
        first = ways[ONE]
        lines.append(
            [
                name if name == ONE else f"{given.streams} {name}",
                spread([1 / seconds for seconds in way.wall], 1),
                spread([1e3 * seconds for seconds in way.processor]),
                spread([other / own for other, own in zip(first.wall, way.wall, strict=True)]),
                spread([other / own for other, own in zip(first.processor, way.processor, strict=True)]),
            ]
        )
    columns = ["way", "tokens per second", "processor ms per token", "times as fast", "by processor time"]
    note = f"{given.streams} streams of at most {TOKENS} tokens, each with a LoRA of its own, on one thread."
    return Table("Chat streams of several adapters", columns, lines, note)


def _asking(client: openai.OpenAI) -> Ask:
    def ask(name: str, options: dict[str, Any]) -> int:
        messages: Any = [{"role": "user", "content": f"How far is the moon, {name}?"}]
        stream = client.chat.completions.create(
            model=name, messages=messages, temperature=0, max_tokens=TOKENS, stream=True,
            stream_options={"include_usage": True}, **options,
        )  # fmt: skip
        return sum(piece.usage.completion_tokens for piece in stream if piece.usage is not None)

    return ask


@contextmanager
def _server(bundle: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Start a server, and yield its process and port as soon as it prints its address."""
    words = [sys.executable, "-m", "adapter_export", "serve", f"llama={bundle}", "--port=0", "--drain=0", "--quiet"]
    around = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*words, "--threads=1"], text=True, env=around, **pipes) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _bundle(folder: Path, given: argparse.Namespace) -> Path:
    """Build a bundle with a bank of a random Llama, its tokenizer and its chat template."""
    save_llama(folder / "llama", given.width, given.layers, given.words, end=SPECIAL.index("<|im_end|>"))
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=given.words, initial_alphabet=alphabet, special_tokens=[*SPECIAL], show_progress=False
    )
    sources = islice(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")), 100)
    words.train([str(source) for source in sources], trainer)
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=SPECIAL[0], eos_token=SPECIAL[3]).save_pretrained(
        folder / "llama"
    )
    (folder / "llama" / "chat_template.jinja").write_text(TEMPLATE)
    return with_adapters(folder, given.streams)


if __name__ == "__main__":
    main()
