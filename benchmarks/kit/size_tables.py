"""Tables of `benchmarks/sizes.py`, made from its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from kit.real_models import MODELS
from kit.size_law import FEWEST, Law, memory_law, resident_law, time_law
from kit.size_rows import Row
from kit.size_steps import GENAI_PRECISIONS, PRECISIONS, step_names
from kit.tables import Cell, Table

PARAMETERS, WEIGHTS, ADAPTERS = 7e9, 28e9, 1
"""Size of the model for which the laws are evaluated."""

NOTHING_MEASURED = "Nothing is measured yet."
FAILED = "failed"

_Rows = Mapping[tuple[str, str], Row]


def result_tables(rows: Sequence[Row]) -> str:
    """Return the text of RESULTS.md: machines, and a table of all steps for each model."""
    if not rows:
        return NOTHING_MEASURED
    return "\n\n".join([*_machines(rows), *(_model_table(model, rows).markdown() for model in _models(rows))])


def page_tables(rows: Sequence[Row]) -> str:
    """Return the text of the page: costs by model and step, sizes, generation, and laws."""
    if not rows:
        return NOTHING_MEASURED
    by_place = {row.place: row for row in rows}
    tables = [
        _subjects(by_place),
        _matrix("Memory", "Most anonymous memory (`RssAnon`) of a step in MB.", by_place, _megabytes),
        _matrix("Time", "Processor time of a step in seconds, user and system.", by_place, _seconds),
        _sizes(by_place),
        _answers(by_place),
        _beside_genai(by_place),
        _laws("Law of memory", _MEMORY_NOTE, rows, memory_law, ("a", "b, GB"), (WEIGHTS / 1e9, 1.0), "GB"),
        _laws("Law of resident memory", _RESIDENT_NOTE, rows, resident_law, ("a", "b, GB"), (WEIGHTS / 1e9, 1.0), "GB"),
        _laws("Law of time", _TIME_NOTE, rows, time_law, ("c, s", "d, s"), (PARAMETERS / 1e9, ADAPTERS), "s"),
    ]
    return "\n\n".join(
        [*_machines(rows), *(table.markdown() for table in tables), _seven_billion(rows), *_failures(rows)]
    )


_MEMORY_NOTE = "Anonymous GB = a × GB of float32 weights + b, and its residuals: measured GB less those of the law."
_RESIDENT_NOTE = "The same for resident memory (`VmHWM`), pages of mapped files included."
_TIME_NOTE = (
    "Processor seconds = c × billions of parameters + d × adapters, and its residuals: measured seconds less those of "
    "the law."
)


def _machines(rows: Sequence[Row]) -> Iterator[str]:
    for machine in dict.fromkeys(row.machine for row in rows):
        same = [row for row in rows if row.machine == machine]
        dates, load = sorted({row.date for row in same}), max(row.load for row in same)
        days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        yield f"{days}: {machine} Load average before a step: at most {load:.2f}."


def _models(rows: Sequence[Row]) -> list[str]:
    measured = {row.model for row in rows}
    return [name for name in MODELS if name in measured]


def _model_table(model: str, rows: Sequence[Row]) -> Table:
    """Return all steps of one model."""
    own = [row for row in rows if row.model == model]
    columns = (
        *("step", "processor, s", "clock, s", "resident, MB", "anonymous, MB", "output, MB", "first answer, s"),
        *("per second", "failure"),
    )
    lines = [[f"`{row.step}`", *_costs(row), row.failure] for row in own]
    last = own[-1]
    note = f"{last.parameters:,} parameters, {last.weights / 1e6:,.1f} MB in float32; adapters: {last.adapters}."
    return Table(MODELS[model].title, columns, lines, note)


def _costs(row: Row) -> list[Cell]:
    """Return seconds, MB and answers of a row; nothing for a step that could not start."""
    if not row.wall_s:
        return [None] * 7
    sizes = [_in_megabytes(number) for number in (row.resident, row.anonymous, row.total_bytes)]
    first = None if row.first_s is None else f"{row.first_s:.1f}"
    return [f"{row.processor_s:,.1f}", f"{row.wall_s:,.1f}", *sizes, first, _rate(row)]


def _subjects(rows: _Rows) -> Table:
    columns = ("model", "configuration", "parameters, million", "weights, MB", "adapters", "archive, MB")
    lines: list[list[Cell]] = []
    for model in _models(list(rows.values())):
        row = next(row for row in rows.values() if row.model == model)
        archive = rows.get((model, "capture"))
        cells = [f"`{model}`", MODELS[model].title, f"{row.parameters / 1e6:,.1f}", _in_megabytes(row.weights)]
        lines.append([*cells, row.adapters, None if archive is None else _in_megabytes(archive.total_bytes)])
    return Table("Models", columns, lines)


def _matrix(title: str, note: str, rows: _Rows, cell: Callable[[Row], str]) -> Table:
    """Return a table of models by steps."""
    steps = [step for step in step_names(MODELS.values()) if step not in ("model",) and not step.startswith("genai")]
    models = _models(list(rows.values()))
    lines = [[f"`{step}`", *(_cell(rows.get((model, step)), cell) for model in models)] for step in steps]
    return Table(title, ("step", *(f"`{model}`" for model in models)), lines, note)


def _cell(row: Row | None, cell: Callable[[Row], str | None]) -> str | None:
    if row is None:
        return None
    return FAILED if row.failure else cell(row)


def _megabytes(row: Row) -> str:
    return f"{row.anonymous / 1e6:,.0f}"


def _seconds(row: Row) -> str:
    return f"{row.processor_s:,.1f}"


def _rate(row: Row) -> str | None:
    return None if row.per_s is None else f"{row.per_s:,.3g}" if row.per_s < 100 else f"{row.per_s:,.0f}"


def _in_megabytes(number: int | None) -> str | None:
    return None if number is None else f"{number / 1e6:,.1f}" if number < 1e8 else f"{number / 1e6:,.0f}"


def _sizes(rows: _Rows) -> Table:
    """Return bytes of bases, golden data and adapters."""
    bases = [f"base {precision}" for precision in PRECISIONS]
    columns = ("model", *bases, "golden data of the base", "of an adapter", "shared", "adapter file")
    lines: list[list[Cell]] = []
    for model in _models(list(rows.values())):
        builds = [rows.get((model, f"build {precision}")) for precision in PRECISIONS]
        cells: list[Cell] = [_cell(row, lambda row: _in_megabytes(row.base_bytes)) for row in builds]
        lines.append([f"`{model}`", *cells, *_golden(builds[0])])
    return Table("Sizes", columns, lines, "MB. Golden data and adapter files are those of the bundle in float32.")


def _golden(build: Row | None) -> list[Cell]:
    if build is None or build.failure:
        return [None] * 4
    golden = build.golden_bytes
    numbers = (golden["base"], golden["a0"], golden["shared"], build.adapter_bytes["a0"])
    return [f"{number / 1e6:,.2f}" for number in numbers]


def _answers(rows: _Rows) -> Table:
    """Return seconds to the first answer, and answers per second."""
    firsts = [f"first, s, {precision}" for precision in PRECISIONS]
    columns = ("model", "answer", *firsts, *(f"per s, {precision}" for precision in PRECISIONS))
    lines: list[list[Cell]] = []
    for model in _models(list(rows.values())):
        runs = [rows.get((model, f"run {precision}")) for precision in PRECISIONS]
        firsts = [_cell(row, lambda row: f"{row.first_s:.1f}") for row in runs]
        answer = "a token" if MODELS[model].generates else "a row"
        lines.append([f"`{model}`", answer, *firsts, *(_cell(row, _rate) for row in runs)])
    note = "With adapter `a0`, from the start of the process. A row of a text model has 128 tokens."
    return Table("Answers", columns, lines, note)


def _beside_genai(rows: _Rows) -> Table:
    """Return the costs of language models in a bundle and in onnxruntime-genai."""
    columns = (
        *("model", "made by", "processor, s", "anonymous, MB", "resident, MB", "output, MB"),
        *("run, anonymous, MB", "first token, s", "tokens per s"),
    )
    ways = [(f"`build`, {precision}", f"build {precision}", f"run {precision}") for precision in PRECISIONS]
    ways += [(f"GenAI, {one}", f"genai build {one}", f"genai run {one}") for one in GENAI_PRECISIONS]
    lines: list[list[Cell]] = []
    for model in (name for name in _models(list(rows.values())) if MODELS[name].generates):
        for words, build_step, run_step in ways:
            build, run = rows.get((model, build_step)), rows.get((model, run_step))
            costs = [_cell(build, cell) for cell in (_seconds, _megabytes, _resident, _output)]
            answers = [_cell(run, cell) for cell in (_megabytes, lambda row: f"{row.first_s:.1f}", _rate)]
            lines.append([f"`{model}`", words, *costs, *answers])
    note = "A bundle has all adapters, golden data and three graphs. GenAI's builder makes one LoRA part of its graph."
    return Table("Language models beside ONNX Runtime GenAI", columns, lines, note)


def _resident(row: Row) -> str:
    return f"{row.resident / 1e6:,.0f}"


def _output(row: Row) -> str | None:
    return _in_megabytes(row.total_bytes)


_WITHOUT_LAW = {"tiny", "whisper"}
"""A test's model; and one whose rows have 1,500 tokens each, so that activations outweigh the weights of 82 MB."""

Fit = Callable[[Sequence[Row]], Law | None]


def _fitted(rows: Sequence[Row], fit: Fit) -> dict[str, Law]:
    """Return the law of each step that has one."""
    steps = [step for step in step_names(MODELS.values()) if step != "model"]
    laws = {step: fit([row for row in rows if row.step == step and row.model not in _WITHOUT_LAW]) for step in steps}
    return {step: law for step, law in laws.items() if law is not None}


def _laws(
    title: str,
    note: str,
    rows: Sequence[Row],
    fit: Fit,
    coefficients: tuple[str, str],
    quantities: tuple[float, float],
    unit: str,
) -> Table:
    """Return the law of each step, its value at 7 billion parameters, and its residuals."""
    models = [model for model in _models(rows) if model not in _WITHOUT_LAW]
    columns = ("step", *coefficients, f"7 billion, {unit}", "largest residual", *(f"`{model}`" for model in models))
    lines: list[list[Cell]] = []
    for step, law in _fitted(rows, fit).items():
        numbers = (law.first, law.second, law.at(*quantities), law.largest)
        residuals = [_signed(law.residuals[model]) if model in law.residuals else None for model in models]
        lines.append([f"`{step}`", *(_number(number) for number in numbers), *residuals])
    return Table(title, columns, lines, note if lines else f"{note} Fewer than {FEWEST} models are measured.")


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+,.2f}" if abs(value) < 100 else f"{value:+,.0f}"


def _seven_billion(rows: Sequence[Row]) -> str:
    """Return what the laws say of 7 billion parameters, and the step that would have to change first."""
    heading = "### A model of 7 billion parameters\n\n"
    memory = {step: law.at(WEIGHTS / 1e9, 1.0) for step, law in _own(_fitted(rows, memory_law)).items()}
    time = {step: law.at(PARAMETERS / 1e9, ADAPTERS) for step, law in _own(_fitted(rows, time_law)).items()}
    if not memory:
        return f"{heading}Fewer than {FEWEST} models are measured."
    largest, longest = (max(costs, key=lambda step: costs[step]) for costs in (memory, time))
    size = f"{PARAMETERS / 1e9:.0f} billion parameters ({WEIGHTS / 1e9:.0f} GB in float32)"
    needed = f"{memory[largest]:,.0f} GB or {memory[largest] * 1e9 / WEIGHTS:.1f} times its weights"
    return (
        f"{heading}By these laws, a model of {size} with {ADAPTERS} adapter needs the most anonymous memory in "
        f"`{largest}`, {needed}, and the most processor time in `{longest}`, {time[longest] / 60:,.0f} minutes. "
        f"`{largest}` would have to change first: a step without enough memory fails."
    )


def _own(laws: Mapping[str, Law]) -> dict[str, Law]:
    return {step: law for step, law in laws.items() if not step.startswith("genai")}


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the list of failed steps, with the last line of each."""
    failed = [row for row in rows if row.failure]
    if failed:
        lines = [f"- `{row.model}`, `{row.step}`: {row.failure}{_quoted(row.last_line)}" for row in failed]
        yield "\n".join(["### Failed steps", "", *lines])


def _quoted(line: str) -> str:
    code = line.replace("`", "'")
    return f"; last line: `{code}`" if line else ""
