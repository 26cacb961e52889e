"""The documentation site: strict, offline, complete in HTML, Markdown and search."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import forms_chart
import load_chart
import pictures
import pytest
import site_hooks
import support_page
from api_pages import public_names
from chromium import QUIET
from clients import tool
from mkdocs.commands.build import build
from mkdocs.config import load_config
from tiers import extended

import adapter_export
from adapter_export import errors, palette
from adapter_export.cli.main import COMMANDS
from adapter_export.format.precision import PRECISION_NAMES
from adapter_export.graph.kinds import KINDS
from adapter_export.graph.tasks.types import TASK_TYPES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
@extended
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a built site; any warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return folder


def _pages(site: Path) -> list[Path]:
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def test_every_document_has_a_page_and_its_markdown(site: Path) -> None:
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    sources |= {Path(page).with_suffix("") for page in site_hooks.INCLUDED.values() if page.endswith(".md")}
    pages = {page.relative_to(site).with_suffix("") for page in _pages(site)}
    assert sources <= pages
    assert [page for page in _pages(site) if not page.with_suffix(".md").read_text("utf-8").startswith("# ")] == []
    assert "bottleneck" in (site / "reference/api/training.md").read_text("utf-8")


def test_llms_txt_lists_every_page_once(site: Path) -> None:
    text = (site / "llms.txt").read_text("utf-8")
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)$", text, re.M)
    assert sorted(listed) == sorted(page.relative_to(site).with_suffix(".md").as_posix() for page in _pages(site))
    assert text.startswith("# adapter-export\n\n> ")


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    loading = re.compile(r"<(?:link|script|img|iframe|source|video)\b[^>]*?\b(?:href|src)=[\"']?([^\"' >]+)")
    for page in _pages(site):
        loaded = loading.findall(page.read_text("utf-8"))
        assert any(one.endswith(".css") for one in loaded), page
        assert not [one for one in loaded if "//" in one], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text("utf-8")), style


def test_search_finds_what_pages_contain(site: Path) -> None:
    """The offline plugin puts the index into a script, so that search works in files, too."""
    script = (site / "search" / "search_index.js").read_text("utf-8")
    index = json.loads(script.partition("=")[2].rstrip().rstrip(";"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert found >= {page.relative_to(site).as_posix() for page in _pages(site)} - {"index.html"}
    assert any("OutputExistsError" in entry["text"] for entry in index["docs"])


def test_search_works_in_pages_opened_as_files(site: Path, tmp_path: Path) -> None:
    page = f"{(site / 'index.html').as_uri()}?q=OutputExistsError"
    words = [tool("chromium", "chromium"), *QUIET, f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000"]
    done = subprocess.run([*words, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=False)
    assert re.search(r"\d matching documents", done.stdout)
    assert "reference/errors.html?h=outputexistserror" in done.stdout.lower()


def test_every_command_error_and_public_name_is_described(site: Path) -> None:
    commands = (site / "reference/commands.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"\n### {name}\n" not in commands] == []
    assert "`--reduction-factor" in commands
    described = (site / "reference/errors.md").read_text("utf-8")
    own = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)]
    assert [name for name in own if f"`{name}`" not in described] == []
    pages = "".join(page.read_text("utf-8") for page in (site / "reference/api").glob("*.html"))
    names = [name for section in public_names().values() for name in section]
    assert {f"adapter_export.{name}" for name in adapter_export.__all__} - {*names} == {
        "adapter_export.__version__",
        "adapter_export.errors",
    }
    assert [name for name in names if f'id="{name}"' not in pages] == []
    assert "Annotated[" not in pages


def test_the_support_matrix_is_current() -> None:
    """Write it anew by `python docs/_site/support_page.py`."""
    assert support_page.PAGE.read_text("utf-8") == support_page.page()
    readme = support_page.README.read_text("utf-8")
    assert support_page.in_readme(readme) == readme


def test_support_matrix_counts_match_their_sources() -> None:
    table = (ROOT / "docs/reference/architectures.md").read_text("utf-8")
    zoo = table.partition("<!-- zoo: begin -->")[2].partition("<!-- zoo: end -->")[0]
    complete, tried = zip(*support_page.architectures().values(), strict=True)
    assert sum(complete) == zoo.count("| complete, ")
    assert sum(tried) == len(re.findall(r"^\| (?!model |---)", zoo, re.M))
    assert all(f"`{name}`" in support_page.page() for name in (*TASK_TYPES, *KINDS, *PRECISION_NAMES))


def test_the_chart_of_forms_shows_the_results() -> None:
    """Write it anew by `python docs/_site/forms_chart.py`."""
    chart = forms_chart.chart()
    assert forms_chart.CHART.read_text("utf-8") == chart
    results = forms_chart.RESULTS.read_text("utf-8")
    slots = re.search(r"^\| 1 × 16 \|.*?\|.*?\|.*?\| 1\.(\d\d) ", results.partition("### Cost of each form")[2], re.M)
    assert slots is not None
    assert f"+{slots[1]} %" in chart
    assert "prefers-color-scheme: dark" in chart


@pytest.mark.parametrize(
    ("link", "made"),
    [
        ("[a](format.md#x)", "[a](format.md#x)"),
        ("[a](../../CONTRIBUTING.md#tests)", "[a](../project/contributing.md#tests)"),
        ("[a](../../examples/cpp/README.md)", "a"),
        ("![a](../idea.svg)", "![a](../idea.svg)"),
        ("[a](https://onnx.ai) [b](#c)", "[a](https://onnx.ai) [b](#c)"),
        ("`[a](../../x)`", "`[a](../../x)`"),
        ("```\n[a](../../x)\n```", "```\n[a](../../x)\n```"),
        ("[`a[0]`](../../x)", "`a[0]`"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(link: str, made: str) -> None:
    """Without an address of the repository, links to other files become their text, as in the packages' READMEs."""
    assert site_hooks.resolved(link, "docs/reference/kinds.md", "reference/kinds.md") == made


def test_navigation_lists_each_page_once() -> None:
    left = ["how-to/a.md", "how-to/b.md", "how-to/deep/c.md", "index.md"]
    nav = [{"Home": "index.md"}, {"How-to": ["how-to/b.md", "how-to/*.md"]}, {"None": ["tutorial/*.md"]}]
    assert site_hooks.expanded(nav, left) == [{"Home": "index.md"}, {"How-to": ["how-to/b.md", "how-to/a.md"]}]
    assert left == ["how-to/deep/c.md"]


def test_the_chart_of_the_load_is_that_of_its_table() -> None:
    """Write it anew by `python docs/_site/load_chart.py`."""
    chart = load_chart.chart()
    assert load_chart.CHART.read_text("utf-8") == chart
    for row in load_chart.rows():
        assert f">{row['memory, MB']}</text>" in chart


def test_pictures_have_one_palette_and_the_figures_of_the_demo() -> None:
    """Write them anew by `python docs/_site/pictures.py`."""
    for name in pictures.PICTURES:
        picture = (pictures.DOCS / name).read_text("utf-8")
        assert pictures.drawn(picture) == picture
    charts = ("placements.svg", "serving-load.svg", "project/which-form.svg")
    known = {colour.lower() for colour in re.findall(r"#[0-9a-f]{6}", f"{palette.STYLE}{pictures._MORE}")}
    for name in (*pictures.PICTURES, *charts):
        colours = re.findall(r"#[0-9a-fA-F]{6}", (pictures.DOCS / name).read_text("utf-8"))
        assert {colour.lower() for colour in colours} <= known, name
    weights = pictures.figures()
    drawing = (pictures.DOCS / "placements.svg").read_text("utf-8")
    for adapter in ("trec", "sentiment"):
        assert f">{weights[f'weights {adapter}']}<" in drawing
