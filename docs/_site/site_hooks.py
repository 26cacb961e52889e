"""Hooks of the build: generated pages, files of the root, navigation, Markdown beside the pages, and `llms.txt`."""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import api_pages
import commands_page
import errors_page
from bs4 import BeautifulSoup
from markdownify import MarkdownConverter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
INCLUDED = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/reporting-vulnerabilities.md",
    "benchmarks/RESULTS.md": "project/benchmark-results.md",
    "benchmarks/alternatives.svg": "project/alternatives.svg",
}
"""Files outside of `docs`, and the pages or images they become. Other pages link to the files."""

_LINK = re.compile(
    r"(?P<code>^```.*?^```|^    .*?$|`[^`\n]+`)"
    r"|(?P<image>!?)\[(?P<label>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
_METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["metadata"]
_REPOSITORY = str(_METADATA["hooks"]["custom"]["repository"])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root and the generated pages, then put all pages into the navigation."""
    for name, page in INCLUDED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for pages in (commands_page.pages(), errors_page.pages(), api_pages.pages(), _decisions()):
        for page, text in pages.items():
            files.append(File.generated(config, page, content=text))
    left = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = expanded(config.nav, left)
    return files


def _decisions() -> dict[str, str]:
    """Return the page that lists the decisions."""
    (folder,) = (path for path in (ROOT / "docs").rglob("decisions") if path.is_dir())
    titles = {path.name: path.read_text("utf-8").partition("\n")[0].removeprefix("# ") for path in folder.glob("*.md")}
    lines = [f"- [{title}]({name})" for name, title in sorted(titles.items())]
    uri = folder.relative_to(ROOT / "docs").as_posix()
    return {f"{uri}/index.md": "\n".join(["# Decisions", "", *lines, ""])}


def expanded(items: Any, left: list[str]) -> list[Any]:
    """Replace patterns by the pages in `left` they match, which are taken from it; drop what matches none.

    Names come before patterns, wherever they are: `a/first.md` is not a match of an `a/*.md` above it.
    """
    return _expanded(items, left, set(_strings(items)))


def _expanded(items: Any, left: list[str], names: set[str]) -> list[Any]:
    found = list[Any]()
    for item in items:
        if isinstance(item, dict):
            for title, inner in item.items():
                if pages := _expanded([inner] if isinstance(inner, str) else inner, left, names):
                    found.append({title: pages[0] if isinstance(inner, str) else pages})
            continue
        pages = [one for one in left if one == item or (one not in names and _matches(one, item))]
        left[:] = [one for one in left if one not in pages]
        found += pages
    return found


def _matches(page: str, pattern: str) -> bool:
    return fnmatchcase(page, pattern) and page.count("/") == pattern.count("/")


def _strings(items: Any) -> Iterator[str]:
    for item in items:
        if isinstance(item, dict):
            for inner in item.values():
                yield from _strings([inner] if isinstance(inner, str) else inner)
        else:
            yield item


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make links of files of the repository links of the site."""
    origin = next((name for name, uri in INCLUDED.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")
    return resolved(markdown, origin, page.file.src_uri)


def resolved(markdown: str, origin: str, page: str) -> str:
    """Return a text whose links lead to pages of the site or to the repository.

    While the repository has no address, a link to it becomes its text.

    Args:
        markdown: the text.
        origin: its file in the repository, from which its links lead.
        page: its page in the site.
    """
    return _LINK.sub(lambda link: _resolved(link, origin, page), markdown)


def _resolved(link: re.Match[str], origin: str, page: str) -> str:
    if link["code"] or re.match(r"[a-z]+:|#", link["target"]):
        return link[0]
    path, hash_, anchor = link["target"].partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    if path.endswith("/decisions"):
        path += "/index.md"
    inside = INCLUDED.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    if inside is not None:
        target = posixpath.relpath(inside, posixpath.dirname(page) or ".")
    elif _REPOSITORY:
        target = f"{_REPOSITORY}/{'raw' if link['image'] else 'blob'}/main/{path}"
    else:
        return link["label"]
    return f"{link['image']}[{link['label']}]({target}{hash_}{anchor})"


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    """Keep the navigation and the pages for `llms.txt`."""
    config.extra["navigation"] = nav
    config.extra["pages"] = [file.page for file in files.documentation_pages()]


def on_post_build(config: MkDocsConfig) -> None:
    """Write each page's Markdown beside it, and `llms.txt`, the list of these files."""
    nav: Navigation = config.extra["navigation"]
    pages: list[Page] = config.extra["pages"]
    for page in pages:
        Path(page.file.abs_dest_path).with_suffix(".md").write_text(_markdown(page), encoding="utf-8")
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for item in nav.items:
        lines += [f"## {item.title}", "", *_listed(item), ""]
    lines += ["## Optional", "", *(line for page in pages if page not in nav.pages for line in _listed(page)), ""]
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def _markdown(page: Page) -> str:
    """Return the Markdown of a page; that of the Python API is made of the HTML, as mkdocstrings writes HTML only."""
    if not page.file.src_uri.startswith("reference/api/") or page.file.name == "index":
        return page.markdown or ""
    soup = BeautifulSoup(page.content or "", "html.parser")
    for extra in soup.select("a.headerlink, a.md-annotation"):
        extra.decompose()
    for link in soup.select("a[href]"):
        link["href"] = re.sub(r"\.html(?=#|$)", ".md", str(link["href"]))
    for text in soup.select("td code"):
        text.string = text.get_text().replace("|", "\\|")
    made = MarkdownConverter(heading_style="ATX", code_language="python", bullets="-").convert_soup(soup)
    return re.sub(r"\n{3,}", "\n\n", made)


def _listed(item: Any) -> Iterator[str]:
    if isinstance(item, Section):
        for child in item.children:
            yield from _listed(child)
    elif isinstance(item, Page):
        yield f"- [{item.title}]({posixpath.splitext(item.file.dest_uri)[0]}.md)"
