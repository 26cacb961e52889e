"""Names of pages in docstrings and help, as links of the site."""

from __future__ import annotations

import re

_PAGE = re.compile(r"(?<![\w/(\[`])(`?)docs/([\w/-]+)\.md\1")


def linked(text: str, depth: int) -> str:
    """Return a text in which `docs/how-to/train.md` is a link.

    Args:
        text: Markdown.
        depth: number of folders of the page that shows it.
    """
    return _PAGE.sub(rf"[\g<0>]({'../' * depth}\2.md)", text)
