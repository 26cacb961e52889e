"""Package metadata that depends on the address of the repository: the project's URLs, and its README on PyPI."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class RepositoryMetadata(MetadataHookInterface):
    """Set `readme` and `urls` from `[tool.hatch.metadata.hooks.custom]`.

    Its `repository` is the address of the repository on GitHub, without a final slash, or empty while there is none.
    `folder` is the folder of the README in the repository, and `documentation` what the link to the documentation
    shows.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the two fields of a project whose version is known."""
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": self.readme(text, metadata["version"])}
        metadata["urls"] = self._urls(repository) if (repository := self.config["repository"]) else {}

    def readme(self, text: str, version: str) -> str:
        """Return the README with links to the files of a release.

        PyPI shows it without the files beside it. So a relative link becomes an absolute one, or its text where no
        repository is known.
        """
        repository = self.config["repository"]

        def absolute(link: re.Match[str]) -> str:
            image, label, target = link.groups()
            if not repository:
                return label
            path = posixpath.normpath(posixpath.join(self.config["folder"], target))
            # GitHub shows a page of an image under `blob`, and the image itself under `raw`
            return f"{image}[{label}]({repository}/{'raw' if image else 'blob'}/v{version}/{path})"

        return _LINK.sub(absolute, text)

    def _urls(self, repository: str) -> dict[str, str]:
        return {
            "Homepage": repository,
            "Documentation": f"{repository}/blob/main/{self.config['documentation']}",
            "Repository": repository,
            "Issues": f"{repository}/issues",
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        }
