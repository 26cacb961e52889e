"""The HTML page at `/`."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response


class FrontPage:
    """The HTML page. Its content security policy allows only the script of the page."""

    def __init__(self) -> None:
        self._page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
        script = hashlib.sha256(self._page.partition("<script>")[2].partition("</script>")[0].encode()).digest()
        self._policy = (
            f"default-src 'none'; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{base64.b64encode(script).decode()}'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def add_to(self, app: FastAPI) -> None:
        """Add the route to an app."""
        app.get("/")(self.front)

    async def front(self) -> Response:
        """Return the page."""
        headers = {"content-security-policy": self._policy, "x-content-type-options": "nosniff"}
        return HTMLResponse(self._page, headers=headers)
