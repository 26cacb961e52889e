"""`reference/support-matrix` and the table in README: what goes together, from code and recorded test results.

    python docs/_site/support_page.py

writes both. The sources are the package's tables of task types, kinds, precisions, variants and layouts; the tasks that
each entry point answered in `tests/entry_points`; the outcomes of `make zoo` in `reference/architectures.md`, and of
`make published` in `tests/published/results.json`; and the table of exported kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from adapter_export.format.manifest import VARIANT_NAMES
from adapter_export.format.precision import PRECISION_NAMES, Precision
from adapter_export.graph.kinds import KINDS, REFUSED
from adapter_export.graph.tasks.types import TASK_TYPES
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.ship.layout import Layout

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE, README = DOCS / "reference" / "support-matrix.md", ROOT / "README.md"
BEGIN, END = "<!-- support: begin -->\n", "<!-- support: end -->\n"

LANGUAGES = {
    "Python": ("texts().answer", "Session.run_many"),
    "C++ (ids)": ("C++ --inputs, padded",),
    "C, Java (ids)": ("C",),
    "Node": ("Node",),
    "Browser": ("browser",),
}
"""Columns of languages, with their entry points in the tests. The Java client calls the C interface."""

CLIENTS = (
    ("Python", "texts or ids", "library", True),
    ("Node", "texts or ids", "npm package", True),
    ("Browser", "texts or ids", "page for WebAssembly and WebGPU", True),
    ("C, C++", "ids", "client, service and C interface", True),
    ("Java", "ids", "client on the C interface", True),
    ("Rust, Go, C#", "ids", "calls to the C interface", False),
    ("Kotlin, Swift, Objective-C", "ids", "ONNX Runtime's packages", False),
)
"""Languages: what a client takes, what it is, and whether the tests run it."""

SERVERS = {
    "`serve`": ("serve /answer", "serve /answer, inputs"),
    "C++ service (ids)": ("C++ service",),
    "KServe": ("KServe v1", "KServe v2, padded tensors"),
    "Ray Serve": ("Ray Serve",),
    "transformers.js": ("transformers.js",),
}
"""Columns of servers and libraries that answer requests, likewise."""

LAYOUTS: Mapping[Layout, str] = {
    "triton": "Triton: arrays in, results of heads out; the client decodes them",
    "kserve": "KServe's Python server",
    "ray": "Ray Serve",
    "docker": "`adapter-export serve` in a container",
    "transformers.js": "transformers.js in Node and browsers",
}
"""Layouts of `ship`."""

ENCODERS, OF_ENCODERS = "Encoders of text", ("multi_vector", "sparse_embedding")
"""Family, and the tasks that were tried with no other one."""

WRITER = "Decoders"
"""The family of bases that `train` teaches to write texts."""

FILES = ("Images and video", "Speech and sound")
"""Families of bases that read files instead of texts."""


_MARK = "✓"

_RESULTS = ROOT / "tests/published/results.json"
_BUNDLED = ("slots", "inputs", "bank")
"""Variants that the runs of published models take."""

Row = Mapping[str, Mapping[str, str]]
"""Outcomes of a task: by text, the variants of each precision, separated by blanks."""


def page() -> str:
    """Return the text of the page."""
    return "\n".join(_page()) + "\n"


def summary() -> str:
    """Return the table in README: every dimension with its values."""
    families = architectures()
    complete, tried = (sum(one[at] for one in families.values()) for at in (0, 1))
    lines = [
        ("Tasks", _names(TASK_TYPES)),
        ("Bases", f"{_plain(families)}: {complete} of {tried} architectures pass the whole pipeline"),
        ("Adapters", f"{_names(KINDS)}; any other graph of the ops"),
        ("Precisions", _names(PRECISION_NAMES)),
        ("Languages", "Python, Node, browser (texts or ids), C, C++, Java (ids); any other with ONNX Runtime"),
        ("Servers", f"`serve` (HTTP), C++ service; {_names(get_args(Layout))}"),
    ]
    link = PAGE.relative_to(ROOT).as_posix()
    rows = "".join(f"| {name} | {values} |\n" for name, values in lines)
    return f"| Supported | [what goes together]({link}) |\n|---|---|\n{rows}"


def architectures() -> Mapping[str, tuple[int, int]]:
    """Return the complete and all architectures of each family, as `make zoo` found them."""
    table = (DOCS / "reference/architectures.md").read_text("utf-8").partition("<!-- zoo: begin -->")[2]
    found = {}
    for part in re.split(r"^\*\*", table.partition("<!-- zoo: end -->")[0], flags=re.MULTILINE)[1:]:
        family, _, rows = part.partition("**")
        outcomes = [line.split(" | ")[-1] for line in rows.splitlines() if line.startswith("| ")][1:]
        found[family] = sum(one.startswith("complete") for one in outcomes), len(outcomes)
    return found


def _page() -> Iterator[str]:
    yield """\
# Support matrix

```sh
python docs/_site/support_page.py        # writes this page from the code and the recorded results of the tests
```

An adapter is a graph at sites of a base, so any kind of adapter works with any base family, task, precision and
variant, unless [Limits](#limits) excludes it. Each table covers two of the dimensions.

## Tasks by language and server

A cell is marked if the tests compare answers of this task with those of the torch model: singly, in batches of mixed
adapters, padded, truncated, and on bases where padding changes answers. Clients marked *ids* have no tokenizer.
"""
    yield _row("task", *LANGUAGES, *SERVERS)
    yield _rule(1 + len(LANGUAGES) + len(SERVERS))
    answered = json.loads((ROOT / "tests/entry_points/answered.json").read_text("utf-8"))
    for name, task in TASK_TYPES.items():
        columns = {**LANGUAGES, **SERVERS}.items()
        writes = [_MARK if column in _writers() else "" for column, _ in columns]
        cells = [_mark(task.recorded or name, points, answered) for _, points in columns]
        yield _row(f"`{name}`", *(cells if task.has_head else writes))
    yield """
`causal_lm` writes texts ([generate](../how-to/generate.md)).

## Languages

[Embed](../how-to/embed.md) has a page for each.
"""
    yield _row("language", "takes", "client", "tested")
    yield _rule(4)
    for language, takes, client, is_tested in CLIENTS:
        yield _row(language, takes, client, _MARK if is_tested else "no")
    yield """
## Base families

`make zoo` takes small models of each architecture through capture, sites, build and check. The
[list](architectures.md) has each model, and the reason of each refusal.
"""
    yield _row("family", "complete", "tried", "tasks")
    yield _rule(4)
    for family, (complete, tried) in architectures().items():
        tasks = [name for name, task in TASK_TYPES.items() if task.has_head or family == WRITER]
        tasks = [name for name in tasks if TASK_TYPES[name].reads_files or family not in FILES]
        tasks = [name for name in tasks if family == ENCODERS or name not in OF_ENCODERS]
        yield _row(family, str(complete), str(tried), _names(tasks))
    yield """
Encoders with decoders generate with adapters that PEFT or your own loop trained.
"""
    yield from _published()
    yield """
## Kinds of adapters

`train`, `attach` and `pack` make every kind. A cell names what `export` writes for another library, which computes the
same. [Kinds](kinds.md) has the formulas, [import](../how-to/import-adapters.md) the methods read from other libraries.
"""
    exported = _exported()
    yield _row("kind", *(f"export to `{name}`" for name in FORMATS))
    yield _rule(1 + len(FORMATS))
    for name in KINDS:
        yield _row(f"`{name}`", *exported[f"`{name}`"])
    yield "\nThese published kinds cannot be trained or packed; import reads some of them:\n"
    yield from (f"- `{name}` {why}" for name, why in REFUSED.items())
    yield f"""
## Precisions of the base

Adapters, heads, inputs and outputs stay in float32. A base in any precision can be built in every
[variant](../explanation/slots-and-variants.md#variants): {_names(VARIANT_NAMES)}.
"""
    yield _row("precision", "activations", "embeddings")
    yield _rule(3)
    for precision in PRECISION_NAMES:
        one = Precision.of(precision)
        yield _row(f"`{precision}`", one.activations, one.embeddings)
    yield """
## Servers

`adapter-export serve` answers HTTP itself. `adapter-export ship` writes layouts for platforms;
[ship](../how-to/ship.md) says which parts are tested.
"""
    yield _row("layout", "platform")
    yield _rule(2)
    for layout in get_args(Layout):
        yield _row(f"`{layout}`", LAYOUTS[layout])
    yield """
## Limits

- On bases whose rows influence each other, such as ONNX Runtime's dynamic int8, each row has a call of its own.
- Architectures that cannot be captured, such as those whose graph depends on data, are refused with a reason.
- Rust, Go, C# and Objective-C call ONNX Runtime or the C interface; their rows are
  [not tested](../how-to/embed.md#choose-a-graph).
- The cells are tested on the CPU. [Runtime options](../how-to/runtime-options.md) has other execution providers."""


def _published() -> Iterator[str]:
    """Yield the table of published models, by precision."""
    yield f"""\
## Published models

`make published` takes small models with published configurations (fewer layers, narrower, a short vocabulary, random
weights) through capture, the import of a LoRA in PEFT's format, build and verify, and compares an answer of each task
with transformers. ✓ marks precisions in which every task passes in {_names(_BUNDLED)}. Tasks after "not" have no
bundle; `tests/published/results.json` has the error of each.
"""
    yield _row("model", "tasks", *(f"`{precision}`" for precision in PRECISION_NAMES))
    yield _rule(2 + len(PRECISION_NAMES))
    results: Mapping[str, Mapping[str, Row]] = json.loads(_RESULTS.read_text("utf-8"))
    for model, tasks in results.items():
        yield _row(model, _names(tasks), *(_tested(tasks, precision) for precision in PRECISION_NAMES))


def _tested(tasks: Mapping[str, Row], precision: str) -> str:
    """Summarize the outcomes of a model in a precision."""
    passed = {task: row.get("passed", {}).get(precision, "").split() for task, row in tasks.items()}
    tested = {task for task, row in tasks.items() if any(precision in variants for variants in row.values())}
    if not tested:
        return "not tested"
    if all(len(variants) == len(_BUNDLED) for variants in passed.values()):
        return _MARK
    return "; ".join(
        _verdict(task, passed[task], task in tested) for task in tasks if len(passed[task]) < len(_BUNDLED)
    )


def _verdict(task: str, variants: Sequence[str], is_tested: bool) -> str:
    """Describe a task that does not pass in every variant."""
    if not is_tested:
        return f"`{task}` not tested"
    return f"`{task}` only in {_names(variants)}" if variants else f"not `{task}`"


def _exported() -> Mapping[str, list[str]]:
    """Return what each kind becomes in each format, from the table that a test compares with exports."""
    begin = "<!-- exported kinds: begin -->"
    (text,) = (text for path in (DOCS / "how-to").glob("*.md") if begin in (text := path.read_text("utf-8")))
    lines = text.partition(begin)[2].partition("<!--")[0].split("\n")
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {name: found for name, *found in cells}


def _writers() -> Sequence[str]:
    """Return the columns that write texts: Python, and the server if it has the endpoint."""
    sources = (ROOT / "adapter_export" / "plugins" / "serve").rglob("*.py")
    served = any("/v1/completions" in path.read_text("utf-8") for path in sources)
    return ("Python", "`serve`") if served else ("Python",)


def _mark(task: str, points: Sequence[str], answered: Mapping[str, Sequence[str]]) -> str:
    return _MARK if any(task in answered[point] for point in points) else ""


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _plain(names: Mapping[str, object]) -> str:
    return ", ".join(name[0].lower() + name[1:] for name in names)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def in_readme(text: str) -> str:
    """Return the README with the current table between its markers."""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{README} has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}{summary()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(in_readme(README.read_text("utf-8")), encoding="utf-8")
