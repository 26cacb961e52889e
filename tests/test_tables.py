"""Tables as notebooks show them."""

from __future__ import annotations

from adapter_export.tables import Table, html_of


def test_what_a_sentence_quotes_is_no_markup() -> None:
    """Labels and paths come from files of others."""
    shown = html_of(
        Table(("label",), [("<b>x</b>",)]), "unknown label <script>alert(1)</script>", "\x1b]0;owned\x07 & more"
    )
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "<p>unknown label &lt;script&gt;alert(1)&lt;/script&gt;</p>" in shown
    assert "\\x1b]0;owned\\x07 &amp; more" in shown
