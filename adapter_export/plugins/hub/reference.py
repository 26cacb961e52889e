"""Remote references: `hf://owner/name[@revision]`, `oci://…` and `hf://datasets/owner/name[:split]`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address

from adapter_export.errors import UsageError

_HUB = re.compile(r"hf://(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)

_DATASET = re.compile(
    r"hf://datasets/(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*))?"
    r"(?:(?P<file>(?:/\w[\w.-]*)+\.\w+)|:(?:(?P<subset>\w[\w.-]*)/)?(?P<split>\w[\w.\[\]:%+-]*))?",
    re.ASCII,
)
"""Pattern of splits, including parts such as `train[:10%]`."""

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(
    r"oci://(?P<host>(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?)"
    rf"/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""Pattern of repositories, tags and digests in the OCI distribution specification."""

_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<path>(?:datasets/)?\w[\w.-]*/\w[\w.-]*)", re.ASCII
)
"""Address of a repository's web page."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

DEFAULT_TAG = "latest"


@dataclass(frozen=True)
class HubReference:
    """A repository of the Hugging Face Hub, `hf://owner/name[@revision]`.

    Attributes:
        repository: `owner/name`.
        revision: branch, tag or commit; `None` is the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def name(self) -> str:
        """Last part of the repository name."""
        return self.repository.rpartition("/")[2]

    @property
    def pin(self) -> str | None:
        """Commit, if the reference contains one, which makes it immutable."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def pinned(self, pin: str) -> HubReference:
        """Return the reference to one commit."""
        return replace(self, revision=pin)


@dataclass(frozen=True)
class RegistryReference:
    """An artifact in an OCI registry, `oci://host[:port]/repository[:tag|@sha256:…]`.

    Attributes:
        host: host with optional port.
        repository: path in the registry.
        tag: mutable name.
        digest: `sha256:` and the manifest's digest; takes precedence over the tag.
    """

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}{f'@{self.digest}' if self.digest else f':{self.version}'}"

    @property
    def version(self) -> str:
        """Digest or tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def name(self) -> str:
        """Last part of the repository name."""
        return self.repository.rpartition("/")[2]

    @property
    def pin(self) -> str | None:
        """Digest, if the reference contains one, which makes it immutable."""
        return self.digest

    def pinned(self, pin: str) -> RegistryReference:
        """Return the reference to one digest."""
        return replace(self, tag=None, digest=pin)

    @property
    def is_loopback(self) -> bool:
        """True for a loopback host, which needs no TLS."""
        name = re.sub(r":[0-9]+$", "", self.host).strip("[]")
        try:
            return name == "localhost" or ip_address(name).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class DatasetReference:
    """Rows of a dataset of the Hugging Face Hub, `hf://datasets/owner/name[@revision][:[subset/]split]`.

    Attributes:
        repository: `owner/name`.
        revision: branch, tag or commit; `None` is the main branch.
        subset: configuration of the dataset; `None` is the default.
        split: split, such as `train`.
        file: table in the repository, instead of a split: `hf://datasets/owner/name[@revision]/path.csv`.
    """

    repository: str
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    file: str | None = None

    def __str__(self) -> str:
        subset = f"{self.subset}/" if self.subset else ""
        rows = f":{subset}{self.split}" if self.file is None else f"/{self.file}"
        return f"hf://datasets/{self.repository}{f'@{self.revision}' if self.revision else ''}{rows}"

    @property
    def pin(self) -> str | None:
        """Commit, if the reference contains one, which makes it immutable."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def pinned(self, pin: str) -> DatasetReference:
        """Return the reference to one commit."""
        return replace(self, revision=pin)


Reference = HubReference | RegistryReference


def parse_reference(text: str) -> Reference:
    """Parse a reference.

    Raises:
        UsageError: the reference is invalid.
    """
    if match := _HUB.fullmatch(text):
        return HubReference(f"{match['owner']}/{match['name']}", match["revision"])
    if match := _REGISTRY.fullmatch(text):
        return RegistryReference(match["host"], match["repository"], match["tag"], match["digest"])
    page = _PAGE.match(text)
    raise UsageError(
        "is not a reference to a hub or registry",
        where=text,
        expected="`hf://owner/name[@revision]` or `oci://host[:port]/repository[:tag|@sha256:…]`",
        fix="check it for typos; repositories of registries are lower-case"
        if page is None
        else f"pass `hf://{page['path']}`",
    )


def parse_dataset(text: str) -> DatasetReference:
    """Parse a reference to rows of a dataset.

    Raises:
        UsageError: the reference is invalid.
    """
    if match := _DATASET.fullmatch(text):
        facts = match.groupdict()
        file = facts["file"] and facts["file"].removeprefix("/")
        repository, split = f"{facts['owner']}/{facts['name']}", facts["split"] or "train"
        return DatasetReference(repository, facts["revision"], facts["subset"], split, file)
    raise UsageError(
        "is not a reference to a dataset",
        where=text,
        expected="`hf://datasets/owner/name[@revision][:[subset/]split]`, or `hf://datasets/owner/name/table.csv`",
        fix=f"pass `{text.replace('hf://', 'hf://datasets/')}`" if _HUB.match(text) else "check it for typos",
    )
