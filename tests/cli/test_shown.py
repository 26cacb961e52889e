"""Public objects as `repr` and notebooks show them."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import adapter_export as ae
from adapter_export.bases.forms import ArchiveBase
from adapter_export.graph.tasks.answers import Prediction, TextAnswer, Vector
from adapter_export.tables import Described

MOST = 300
"""Characters of a `repr`: two lines of a notebook at most."""


def returned() -> Iterator[tuple[str, type]]:
    """Yield each class that a call of `adapter_export` returns, by the name of the call, and those that it exports."""
    for name in ae.__all__:
        one = getattr(ae, name)
        if inspect.isclass(one) and one is not ae.Reporter:
            yield name, one
        elif inspect.isfunction(one):
            for annotation in str(inspect.signature(one).return_annotation).split(" | "):
                if annotation not in ("None", "Path"):
                    yield f"{name} → {annotation}", named_in(one.__module__, annotation)
    yield "run → Answers", import_module("adapter_export.commands.bundles.run").Answers
    yield "Bundle.session", named_in("adapter_export.runtime", "Session")
    yield "TextReader.answer", TextAnswer


def named_in(module: str, name: str) -> type:
    """The class that a module has, or imports for annotations."""
    found = getattr(sys.modules[module], name, None)
    if found is None:
        tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text("utf-8"))
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
        source = next(node.module for node in imports if name in [alias.name for alias in node.names])
        found = getattr(import_module(str(source)), name)
    assert isinstance(found, type)
    return found


RETURNED = dict(returned())


@pytest.mark.parametrize("found", RETURNED.values(), ids=RETURNED)
def test_every_public_object_has_a_line_and_a_display(found: type) -> None:
    """A dataclass that forgets `repr=False` has the long one."""
    assert issubclass(found, Described)
    assert found.__repr__ is Described.__repr__
    assert all(one.__repr__ is Described.__repr__ for one in found.__subclasses__())
    assert callable(found._repr_html_)


def shown(one: object) -> tuple[str, str]:
    line, page = repr(one), getattr(one, "_repr_html_", str)()
    assert line.startswith(f"{type(one).__name__}(")
    assert "\n" not in line
    assert len(line) <= MOST, line
    assert "<table>" in page or "<p>" in page
    return line, page


@pytest.mark.extended
def test_public_objects_have_a_readable_repr(model: Path, adapters: Path, bundle: Path) -> None:
    base = ArchiveBase(model)
    assert "parameters=" not in shown(base)[0]  # nothing is opened to be shown
    assert not base.is_open
    opened = ae.open_base(model)
    line, page = shown(opened)
    assert line == str(opened)
    assert re.fullmatch(
        r"ArchiveBase\(path='.*', form='torch archive', inputs=\[.*\], fingerprint='sha256:.*', .*\)", line
    )
    assert "<td" in page
    adapter = ae.load_adapter(adapters / "topic")
    line, page = shown(adapter)
    assert line.startswith("Adapter(name='topic', kind='houlsby', sites=4, parameters=")
    assert "task='single_label'" in line
    assert "single_label" in page
    made = ae.open_bundle(bundle)
    assert "adapters=['topic', 'tone']" in shown(made)[0]
    session = made.session()
    assert shown(session)[0] == "Session(adapters=['topic', 'tone'], provider='cpu')"
    found = ae.verify(bundle)
    assert "passed=True" in shown(found)[0]
    for one in (ae.inspect(bundle), ae.lint(adapter), opened.sites):
        shown(one)
    answer = made.texts(session).answer(["how far"], "topic")[0]
    assert re.match(r"TextAnswer\(label='[abc]', probability=", shown(answer)[0])


def test_displayed_names_contain_no_markup_or_control_characters() -> None:
    line, page = shown(ArchiveBase(Path("<b>\x1b]0;owned\x07.pt")))
    assert not set(line) & {"\x1b", "\x07"}
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_long_answers_are_cut_to_a_line() -> None:
    labels = tuple(f"label {at}" for at in range(500))
    shown(TextAnswer(Prediction(labels[0], 1 / 500, dict.fromkeys(labels, 1 / 500))))
    shown(TextAnswer(Vector(np.arange(384, dtype=np.float32))))
