"""Compare every PEFT type with its import: `make peft`.

PEFT creates each adapter on a small BERT, a small Llama and a small GPT-2, whose layers are `Conv1D` and whose query,
key and value are one layer, with trained tensors of standard deviation 0.2, saves it, and loads it again; torch and
ONNX Runtime must reproduce its results with the imported adapter. Of each architecture there is a base whose matrices
are square, and whose numbers of heads, rows and tokens are equal, so that no shape shows a layout. `--write` puts the
table into `docs/reference/peft.md`. Requires `peft`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import peft
import transformers as hf

sys.path += [str(Path(__file__).parents[2] / "support")]

from peft_types import CASES, Opened, bases_of, capture_base, errors_of, open_types_base

from adapter_export.errors import InputError
from adapter_export.plugins.formats.importers.peft.methods import METHODS
from adapter_export.plugins.formats.importers.peft.peft_options import KINDS

ROOT = Path(__file__).parents[3]

FORMULAS = {
    "LORA": "`W + s·B A`",
    "IA3": "`l ⊙ (W u + b)`, or `W (l ⊙ u) + b` (Liu et al. 2022, §3.3)",
    "TRAINABLE_TOKENS": "rows of embeddings that replace those of the base",
    "LN_TUNING": "`w'/w ⊙ v + (b' − b·w'/w)` behind norms `v` of weight w and bias b (Zhao et al. 2023)",
}
"""Compute the types that are handled separately."""


def write(rows: Sequence[tuple[str, str, str, float]]) -> None:
    """Put the table into the page, between its marks: all types that PEFT has, those that are refused last."""
    page = ROOT / "docs" / "reference" / "peft.md"
    begin, end = "<!-- peft types: begin -->", "<!-- peft types: end -->"
    lines = ["| type | formula, or why not | graphs | largest error |", "|---|---|---|---|"]
    for kind in sorted({title.partition(",")[0] for title, *_ in rows}):
        own = [row for row in rows if row[0].partition(",")[0] == kind]
        doc = METHODS[kind].formula.__doc__ if kind in METHODS else FORMULAS[kind]
        formula = " ".join((doc or "").split("\n\n")[0].split()).removesuffix(".")
        graphs = ", ".join(f"`{name}`" for name in dict.fromkeys(name for row in own for name in row[1].split(", ")))
        lines.append(f"| `{kind}` | {formula} | {graphs} | {max(row[3] for row in own):.0e} |")
    lines += [f"| `{kind}` | refused: {why} | – | – |" for kind, why in sorted(KINDS.items())]
    known = {kind.value for kind in peft.PeftType}
    assert known == {line.split("`")[1] for line in lines[2:]}, "a type is in no row"
    before, _, rest = page.read_text().partition(begin)
    page.write_text("\n".join([before + begin, "", *lines, "", end]) + rest.partition(end)[2])


def _opened(name: str, folder: Path) -> Opened:
    (folder / name).mkdir()
    capture_base(folder / name, name)
    return open_types_base(folder / name, name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="types whose names begin so")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    hf.utils.logging.disable_progress_bar()
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bases = {name: _opened(name, folder) for name in dict.fromkeys(chain(*map(bases_of, CASES.values())))}
        for number, (title, case) in enumerate(CASES.items()):
            if not title.startswith(chosen.only):
                continue
            found, graphs, why = 0.0, dict[str, None](), ""
            for name in bases_of(case):
                try:
                    error, names = errors_of(case, bases[name], folder / f"{number}_{name}")
                    found = max(found, error)
                    graphs |= dict.fromkeys(names.split(", "))
                except (InputError, AssertionError, ValueError, RuntimeError, TypeError, KeyError) as error:
                    why += f" {name}: {type(error).__name__}: {str(error)[:600]}"
            ok = not why and found < case.tolerance
            failed += not ok
            print(f"{title:24} {'ok  ' if ok else 'FAIL'} {found:.1e} {', '.join(graphs)} {why}", flush=True)
            rows.append((title, ", ".join(graphs), ", ".join(case.bases), found))
    print(f"{len({title.split(',')[0] for title in CASES})} types, {failed} failed; refused: {', '.join(KINDS)}")
    if chosen.write and not failed:
        write(rows)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
