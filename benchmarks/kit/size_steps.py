"""The steps that `benchmarks/sizes.py` measures for a model: commands, the outputs they need, and their sizes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.real_models import RealModel

PRECISIONS = ("fp32", "int8", "int8-weights", "int4-weights")
GENAI_PRECISIONS = ("fp32", "int4")

_KIT = Path(__file__).parent

Command = list[str]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A measured step.

    Attributes:
        commands: each runs in a process of its own; their costs are added.
        output: what they write; `None` for a step that only reads.
        needs: names of the steps whose outputs they read.
        prepare: puts the input in place, unmeasured.
        facts: sizes of the output, for the row.
        answers: whether the last command prints the facts as JSON.
    """

    commands: tuple[Command, ...]
    output: Path | None = None
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None
    facts: Callable[[], Facts] = field(default=dict)
    answers: bool = False


def steps_of(name: str, model: RealModel, folder: Path) -> dict[str, Step]:
    """Return the steps of a model in their order, by name.

    Args:
        name: short name of the model.
        model: the model.
        folder: where all outputs are.
    """
    return dict(_steps(name, model, folder))


def step_names(models: Iterable[RealModel]) -> list[str]:
    """Return the names of all steps that any of the models has, in their order."""
    return list(dict.fromkeys(step for model in models for step in steps_of("", model, Path())))


def remove(output: Path | None) -> None:
    """Remove the output of a step, if it is there."""
    if output is None:
        return
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def _steps(name: str, model: RealModel, folder: Path) -> Iterator[tuple[str, Step]]:
    archive, source = folder / "base.pt", folder / "model"
    imported, adapters = folder / "imported", [f"a{number}" for number in range(model.adapters)]
    make = [sys.executable, str(_KIT / "real_models.py"), name, str(folder)]
    yield "model", Step((make,), source, facts=lambda: {"total_bytes": _size(source)})
    capture = capture_command(model, source, archive)
    yield "capture", Step((capture,), archive, ("model",), facts=lambda: {"total_bytes": _size(archive)})
    imports = [
        _command("import", "peft", folder / f"lora{number}", "--base", archive, "-o", imported / f"a{number}")
        for number in range(model.adapters + 1)
    ]
    yield "import", Step(tuple(imports), imported, ("capture",), facts=lambda: {"total_bytes": _size(imported / "a0")})
    for precision in PRECISIONS:
        yield f"build {precision}", _build(precision, archive, [imported / one for one in adapters], folder)
    yield "add", _add(folder, imported / f"a{model.adapters}", archive, adapters)
    bundle = folder / "bundle-fp32"
    yield "verify", Step((_command("verify", bundle),), needs=("build fp32",))
    yield "check", Step((_command("check", bundle, "--against", archive),), needs=("build fp32", "capture"))
    for precision in PRECISIONS:
        run = _first_answer("bundle", folder / f"bundle-{precision}", "a0")
        yield f"run {precision}", Step((run,), needs=(f"build {precision}",), answers=True)
    if model.generates:
        yield from _genai_steps(folder)


def capture_command(model: RealModel, source: Path, archive: Path) -> Command:
    """Return the command that captures a model."""
    return _command("capture", source, "-o", archive, *(f"--input={text}" for text in model.inputs))


def _build(precision: str, archive: Path, adapters: list[Path], folder: Path) -> Step:
    bundle = folder / f"bundle-{precision}"
    names = ",".join(map(str, adapters))
    options = () if precision == "fp32" else ("--base-precision", precision)
    command = _command("build", archive, "--adapters", names, "-o", bundle, *options)
    owners = [adapter.name for adapter in adapters]
    return Step((command,), bundle, ("capture", "import"), facts=lambda: _bundle_sizes(bundle, owners))


def _add(folder: Path, adapter: Path, archive: Path, built: list[str]) -> Step:
    grown = folder / "grown"

    def copy() -> None:
        shutil.copytree(folder / "bundle-fp32", grown, copy_function=os.link)

    command = _command("add", grown, adapter, "--against", archive)
    owners = [*built, adapter.name]
    return Step((command,), grown, ("build fp32",), copy, lambda: _bundle_sizes(grown, owners))


def _genai_steps(folder: Path) -> Iterator[tuple[str, Step]]:
    """Yield exports with onnxruntime-genai's builder, one LoRA in each, and their first tokens."""
    for precision in GENAI_PRECISIONS:
        out, cache = folder / f"genai-{precision}", folder / "genai-cache"
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder / "model"), "-o", str(out)]
        build += ["-p", precision, "-e", "cpu", "-c", str(cache)]
        build += ["--extra_options", f"adapter_path={folder / 'lora0'}"]
        yield f"genai build {precision}", Step((build,), out, ("model",), facts=_genai_sizes(out))
    for precision in GENAI_PRECISIONS:
        run = _first_answer("genai", folder / f"genai-{precision}")
        yield f"genai run {precision}", Step((run,), needs=(f"genai build {precision}",), answers=True)


def _genai_sizes(folder: Path) -> Callable[[], Facts]:
    return lambda: {"base_bytes": _size(folder / "model.onnx.data"), "total_bytes": _size(folder)}


def _command(*words: object) -> Command:
    return [sys.executable, "-m", "adapter_export", *map(str, words)]


def _first_answer(way: str, folder: Path, *adapter: str) -> Command:
    return [sys.executable, str(_KIT / "first_answer.py"), way, str(folder), *adapter]


def _bundle_sizes(bundle: Path, adapters: list[str]) -> Facts:
    """Return the bytes of a bundle, and of the golden data and the file of each adapter."""
    return {
        "base_bytes": _size(bundle / "base.bin"),
        "golden_bytes": _golden_sizes(bundle / "golden", ["base", *adapters]),
        "adapter_bytes": {name: _size(bundle / "adapters" / f"{name}.onnx_adapter") for name in adapters},
        "total_bytes": _size(bundle),
    }


def _golden_sizes(folder: Path, owners: list[str]) -> dict[str, int]:
    """Return the bytes of golden data by the adapter in their names; those of all adapters have the key `shared`."""
    sizes = dict.fromkeys([*owners, "shared"], 0)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        names = {*path.relative_to(folder).parts, path.stem}
        sizes[next((owner for owner in owners if owner in names), "shared")] += path.stat().st_size
    return sizes


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
