"""The table of `docs/how-to/export-adapters.md`: what each kind becomes in each format, found by exporting it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from exported import FINGERPRINT, random_for_sites
from hand_made_sites import BERT, encoder

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import average, stack, weighted_fusion
from adapter_export.graph.kinds import KINDS, BottleneckOptions, Ia3Options, LoraOptions, houlsby, ia3, lora
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.formats.exporters.export_format import ExportRequest
from adapter_export.sites.site import SUBLAYERS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "export-adapters.md"
BEGIN, END = "<!-- exported kinds: begin -->\n", "<!-- exported kinds: end -->"

POST_NORM = encoder(2, 16, 32, BERT)
SITES = replace(
    POST_NORM, sites=tuple(replace(one, u=one.x) if one.role in SUBLAYERS else one for one in POST_NORM.sites)
)
"""A base without a norm before its sublayers, which read the residual stream."""


def adapters() -> Iterator[tuple[str, Adapter]]:
    for name, maker in KINDS.items():
        options = BottleneckOptions("gelu", phm_dim=4, bottleneck=8) if name.startswith("compacter") else None
        yield f"`{name}`", random_for_sites(maker() if options is None else maker(options), SITES)
    yield "`lora` with a gate", random_for_sites(lora(LoraOptions(gate=True)), SITES)
    yield "`lora` with biases", random_for_sites(lora(LoraOptions(lora_bias=True)), SITES)
    yield "`ia3` without scaled inputs", random_for_sites(ia3(Ia3Options(scaled_inputs=())), SITES)
    yield "bottlenecks without biases", random_for_sites(houlsby(BottleneckOptions(no_bias=True)), SITES)
    members = [random_for_sites(lora(LoraOptions()), SITES, name) for name in "ab"]
    for name, compose in (("a stack", stack), ("an average", average), ("a weighted fusion", weighted_fusion)):
        yield name, compose(*members, name="both")


def exported_as(adapter: Adapter, to: str, folder: Path) -> str:
    request = ExportRequest(adapter, BaseView(FINGERPRINT, SITES, "bert"))
    try:
        return FORMATS[to].write(request, folder).form
    except AdapterError:
        return "–"
    except UsageError:  # all is well but for the base in GGUF, which is asked for last
        return "LORA"


def table(folder: Path) -> str:
    lines = [f"| adapter | {' | '.join(f'`{name}`' for name in FORMATS)} |", "|---" * (1 + len(FORMATS)) + "|"]
    for name, adapter in adapters():
        cells = [exported_as(adapter, to, folder) for to in FORMATS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_documented_export_table_matches_the_exporters(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip("\n") + "\n"
    found = table(tmp_path)
    if written != found:
        pytest.fail(f"write this into {PAGE.name}:\n{found}")
