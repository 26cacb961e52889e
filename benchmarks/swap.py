"""Cost of swapping adapters between calls, compared with a new session.

    python benchmarks/swap.py                                   # all-MiniLM-L6-v2, from `make setup`
    python benchmarks/swap.py --model model.onnx --shapes 1x16 --provider cuda

Calls go through `adapter_export.runtime`, which checks the inputs of each call. `another adapter` selects the next
adapter of the bundle in every call; on a GPU all adapters stay in its memory, without further copies. `its tensors
copied` is the cost of sending the adapter's tensors with each call.
"""

from __future__ import annotations

from itertools import cycle

import onnxruntime as ort
from kit.part import Part, Settings
from kit.subject import Arrays, Subject
from kit.tables import Spread, Table, spread
from kit.timing import Call, interleaved, milliseconds, ratio

from adapter_export.format.tensors import read_tensors
from adapter_export.runtime import Session
from adapter_export.runtime.graphs import Provider, on_device, open_session

_LATE = "late"


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """Calls with and without a swap, and the ways to get a further adapter."""
    session = subject.bundle.session(provider=settings.provider, threads=settings.threads)
    return [_calls(session, subject, settings), _arrivals(session, subject, settings)]


def _calls(session: Session, subject: Subject, settings: Settings) -> Table:
    rows = []
    for batch, tokens in settings.shapes:
        times = interleaved(_ways(session, subject, subject.inputs(batch, tokens)), settings.pace)
        switch = [other - same for other, same in zip(times["other"], times["same"], strict=True)]
        rows.append(
            [
                f"{batch} × {tokens}",
                milliseconds(times, "same"),
                ratio(times, "other", "same"),
                spread([seconds * 1e6 for seconds in switch], 0),
                ratio(times, "copied", "same"),
            ]
        )
    columns = ["batch × tokens", "same adapter, ms", "another adapter", "the switch, µs", "its tensors copied"]
    note = "The second and the last column are times over that of a call with the same adapter as the call before."
    return Table("Calls that swap", columns, rows, note)


def _ways(session: Session, subject: Subject, inputs: Arrays) -> dict[str, Call]:
    names, record = cycle(subject.names), subject.bundle.manifest.adapters[0]
    tensors = read_tensors(subject.bundle.folder / record.safetensors)

    def copied() -> None:
        for tensor in tensors.values():
            on_device(tensor.copy(), session.provider)
        session.run(inputs, record.name)

    return {
        "same": lambda: session.run(inputs, record.name),
        "other": lambda: session.run(inputs, next(names)),
        "copied": copied,
    }


def _arrivals(session: Session, subject: Subject, settings: Settings) -> Table:
    folder, record = subject.bundle.folder, subject.bundle.manifest.adapters[0]

    def load() -> None:
        session.load(_LATE, folder / record.onnx_adapter)
        session.unload(_LATE)

    def opened(path: str, provider: Provider = settings.provider) -> Call:
        return lambda: open_session(folder / path, provider, "all", settings.threads)

    def load_unchecked() -> None:
        ort.LoraAdapter().Load(str(folder / record.onnx_adapter))

    ways = {
        "load an adapter that is not in the bundle": load,
        "the same only with ONNX Runtime, unchecked": load_unchecked,
        "a second session, adapter as constants": opened(record.baked or ""),
        "a second session of the graph with slots": opened(subject.bundle.manifest.graphs["slots"]),
    }
    times = interleaved(ways, settings.pace)
    rows = [[name, milliseconds(times, name), _times(ratio(times, name, next(iter(ways))))] for name in ways]
    size = (folder / record.onnx_adapter).stat().st_size / 1e6
    note = (
        f"An adapter of {size:.1f} MB. Loading reads its file and holds names, shapes and numbers against the slots of "
        "the graph; ONNX Runtime maps it."
    )
    return Table("A further adapter", ["way", "ms", "times as long as loading"], rows, note)


def _times(found: Spread) -> Spread | None:
    """Not for the way that the others are compared with."""
    return None if found.low == found.high == 1 else found


PART = Part(__doc__ or "", ("provider", "threads", "rounds", "seconds", "shapes"), measure)

if __name__ == "__main__":
    PART.main()
