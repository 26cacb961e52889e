"""A process that opens a model, answers, and prints the seconds to its first answer and its rate as JSON.

python benchmarks/kit/first_answer.py bundle|genai FOLDER [ADAPTER]

A language model continues a prompt; an answer is a token. Another model answers a row; an answer is a call. All run on
one thread, and the first answer counts from the start of the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

TOKENS, PROMPT, CALLS, ROW = 33, 16, 9, 128
"""Generated tokens and tokens of their prompt; calls and tokens of their row."""

Answers = Iterator[object]


def bundle(folder: str, adapter: str) -> Answers:
    """Yield after each answer of a bundle's session."""
    from adapter_export.decoding import Decoding
    from adapter_export.numerics.sample_inputs import input_cases
    from adapter_export.runtime import Bundle

    opened = Bundle.open(folder)
    session, records = opened.session(threads=1), opened.manifest.inputs
    if any(record.role == "cache" for record in records):
        yield from session.decoder.write([[*range(3, 3 + PROMPT)]], [adapter], Decoding(TOKENS), ())
        return
    batches = {record.axes[0] for record in records if record.axes}
    axes = {axis for record in records for axis in record.axes if isinstance(axis, str)}
    shape = {axis: 1 if axis in batches else ROW for axis in axes}
    arrays = input_cases(records, seed=0, shapes=[shape])[0].arrays
    for _ in range(CALLS):
        yield session.run(arrays, adapter)


def genai(folder: str, _: str) -> Answers:
    """Yield after each token of onnxruntime-genai's generator; the builder made the adapter part of the graph."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(folder)
    config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}')
    model = og.Model(config)
    parameters = og.GeneratorParams(model)
    longest = PROMPT + TOKENS
    parameters.set_search_options(do_sample=False, min_length=longest, max_length=longest)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.arange(3, 3 + PROMPT, dtype=np.int32)[None])
    for _token in range(TOKENS):
        yield generator.generate_next_token()


WAYS: Mapping[str, Callable[[str, str], Answers]] = {"bundle": bundle, "genai": genai}


def _started() -> float:
    """Return when this process started, in seconds since the machine did."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def main(way: str, folder: str, adapter: str = "") -> None:
    """Answer, and print seconds and answers per second."""
    times = [time.clock_gettime(time.CLOCK_BOOTTIME) for _ in WAYS[way](folder, adapter)]
    rate = (len(times) - 1) / (times[-1] - times[0])
    print(json.dumps({"first_s": round(times[0] - _started(), 2), "per_s": round(rate, 3)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
