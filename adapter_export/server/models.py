"""The models of a server by name: adapters of its bundles, their bases, and what is loaded beside them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adapter_export.errors import RequestError, UsageError, argument, quoted
from adapter_export.graph.adapter import check_name
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.hub.address import locate
from adapter_export.providers import PROVIDERS
from adapter_export.runtime import Bundle, Session, check_session
from adapter_export.runtime.adapter_file import model_version_of, parse_adapter
from adapter_export.runtime.answerer import Reader
from adapter_export.runtime.bundle import RESIDENT
from adapter_export.runtime.generation.text_writer import TextWriter
from adapter_export.server.collector import Collector
from adapter_export.server.limits import RefusedError
from adapter_export.server.server_settings import Limits, SessionSettings
from adapter_export.server.text_queue import TextQueue

PIN = "@sha256:"
"""Stands between the name of a model and the digest that it must have."""

_SHOWN = 20
"""Maximum names in a message."""

_POLL = 0.005
"""Seconds between two looks at whether an adapter is still in use."""

_uses = itertools.count(1)


class Observer(Protocol):
    """Counts calls of sessions."""

    def call(self, served: LoadedBundle, rows: int, waited: float, /) -> None:
        """Count a call, and the seconds that its first row waited."""

    def step(self, served: LoadedBundle, rows: int, /) -> None:
        """Count a call that gives each of its rows a token."""


class _Silent:
    def call(self, served: LoadedBundle, rows: int, waited: float, /) -> None:
        """Count nothing."""

    def step(self, served: LoadedBundle, rows: int, /) -> None:
        """Count nothing."""


def open_session(bundle: Bundle, settings: SessionSettings) -> Session:
    """Open a session; errors are those of `Bundle.session`."""
    return bundle.session(
        provider=settings.provider,
        threads=settings.threads,
        packed=not settings.mapped_weights,
        on_demand=settings.resident is not None,
        resident=settings.resident or RESIDENT,
    )


def check_resident(bundle: Bundle, session: Session, settings: SessionSettings) -> None:
    """Compare a session with golden data of the base and the resident adapters, unless its provider did so on opening.

    Raises:
        FileError, FormatError: as `check_session`.
    """
    if not PROVIDERS[session.provider].proved:
        check_session(bundle, session, None if settings.resident is None else ())


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that was loaded beside those of a bundle: the bytes of its file, and what its answers mean.

    One that a resolver `found` by its name makes room for others, and is found again when a request names it.
    """

    name: str
    data: bytes = field(repr=False)
    labels: tuple[str, ...] | None = None
    task: Task | ProblemType | None = None
    found: bool = False

    @property
    def digest(self) -> str:
        """The sha256 of its file."""
        return hashlib.sha256(self.data).hexdigest()


def _reader(bundle: Bundle, session: Session) -> Reader | None:
    """Return what reads texts or files for a bundle; `None` if clients must send arrays."""
    if bundle.manifest.text is not None:
        return bundle.texts(session)
    if bundle.manifest.media is not None:
        with suppress(RequestError):  # its processor is not known, or the base has more inputs than files fill
            return bundle.files(bundle.manifest.media.medium, session)
    return None


def _writer(bundle: Bundle, session: Session) -> TextWriter | None:
    """Return what generates texts for a bundle; `None` if it has no tokenizer, or does not generate."""
    with suppress(RequestError):
        return bundle.writer(session)
    return None


class LoadedBundle:
    """A bundle in one session, and what waits for it.

    Args:
        name: of the bundle.
        bundle: that is served.
        settings: how it computes.
        extras: adapters beside those of the bundle; those that were made for another base are left out (`dropped`).
    """

    def __init__(
        self, name: str, bundle: Bundle, settings: SessionSettings, extras: Sequence[LoadedAdapter] = ()
    ) -> None:
        self.name, self.bundle, self.settings = name, bundle, settings
        self.session = open_session(bundle, settings)
        if bundle.verified:  # not a copy that another process has opened and checked
            check_resident(bundle, self.session, settings)
        self.reader, self._writer = _reader(bundle, self.session), _writer(bundle, self.session)
        hashes = {file.path: file.sha256 for file in bundle.manifest.files}
        self.digests = {record.name: hashes[record.onnx_adapter] for record in bundle.manifest.adapters}
        self.extras: dict[str, LoadedAdapter] = {}
        self.dropped: list[str] = []
        self.closing = set[str]()  # no new call may name them
        self.busy, self.used = Counter[str | None](), Counter[str | None]()
        for extra in extras:
            if model_version_of(extra.data, extra.name) == bundle.manifest.model_version and (
                extra.name not in self.session.adapters
            ):
                self.load(extra)
            else:
                self.dropped.append(extra.name)
        self.collector: Collector | None = None
        self.texts: TextQueue | None = None  # of a bundle that generates

    def load(self, extra: LoadedAdapter) -> None:
        """Load an adapter beside those of the bundle; errors are those of `Session.load_bytes`."""
        self.session.load_bytes(
            extra.name, extra.data, labels=extra.labels, task=extra.task, where=f"adapter `{extra.name}`"
        )
        self.extras[extra.name] = extra
        self.digests[extra.name] = extra.digest
        self.used[extra.name] = next(_uses)  # or one that was just found would be the first to go

    def forget(self, adapter: str) -> None:
        """Unload an adapter that no request uses."""
        self.session.unload(adapter)
        del self.digests[adapter]
        self.extras.pop(adapter, None)

    def check_read(self, asked: object) -> None:
        """Raise RequestError for a text where files are read, which would be a path on this machine, and vice versa."""
        reads = "nothing but `inputs`" if self.reader is None else f"{self.reader.word}s"
        if self.reader is None or isinstance(asked, bytes) != (self.reader.word != "text"):
            found = "a file" if isinstance(asked, bytes) else "a text"
            raise RequestError(f"bundle `{self.name}` reads {reads}", found=found)

    def has(self, adapter: str) -> bool:
        """Return whether a call may name an adapter."""
        return adapter in self.digests and adapter not in self.closing

    @property
    def waiting(self) -> int:
        """Number of queued rows."""
        return sum(0 if queue is None else queue.waiting for queue in (self.collector, self.texts))

    def start(self, limits: Limits, observer: Observer) -> None:
        """Begin to run; inside an event loop."""
        self.collector = Collector(
            self.session.run_many,
            calls=self.settings.concurrency,
            most=self.settings.max_batch_size,
            most_waiting=limits.max_queue,
            max_wait=self.settings.max_batch_delay / 1000,
            on_call=lambda rows, waited: observer.call(self, rows, waited),
        )
        if self._writer is not None:
            self.texts = TextQueue(
                self._writer,
                most=self.settings.max_batch_size,
                most_waiting=limits.max_queue,
                on_step=lambda rows: observer.step(self, rows),
            )

    def generating(self) -> TextQueue:
        """Return the queue of texts to generate; RequestError if the bundle has no tokenizer, or does not generate."""
        if self.texts is None:
            self.bundle.writer(self.session)  # raises the reason
            raise RequestError("the bundle is not served yet", where=f"bundle `{self.name}`")
        return self.texts

    async def idle(self, adapter: str | None = None, *, altogether: bool = False) -> None:
        """Wait until no request uses an adapter, or altogether any."""
        while self.busy.total() if altogether else self.busy[adapter]:
            await asyncio.sleep(_POLL)

    async def stop(self) -> None:
        """Answer what waits, then end."""
        if self.collector is not None:
            await self.collector.stop()
        if self.texts is not None:
            await self.texts.stop()


@dataclass(frozen=True)
class Target:
    """A bundle's session with one of its adapters; `None` is the base."""

    served: LoadedBundle
    adapter: str | None

    @property
    def name(self) -> str:
        """That of the model, with its bundle."""
        return self.served.name if self.adapter is None else f"{self.served.name}/{self.adapter}"

    @property
    def digest(self) -> str:
        """The sha256 of the adapter's file; of a base, the checksum of the bundle's manifest."""
        if self.adapter is None:
            return self.served.bundle.manifest.checksum or self.served.bundle.manifest.base.rpartition(":")[2]
        return self.served.digests[self.adapter]

    @property
    def is_busy(self) -> bool:
        """True while a request uses it."""
        return self.served.busy[self.adapter] > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it from being unloaded until the block ends."""
        self.served.busy[self.adapter] += 1
        self.served.used[self.adapter] = next(_uses)
        try:
            yield
        finally:
            self.served.busy[self.adapter] -= 1


class Models:
    """Models by name: an adapter's own, `bundle/adapter`, or for a base that of its bundle; each may be pinned.

    Everything that changes what is served runs in the event loop, one change at a time; requests that have begun finish
    on what they began with.
    """

    def __init__(
        self, bundles: Mapping[str, Bundle], settings: SessionSettings, limits: Limits, *, qualify: bool
    ) -> None:
        self._settings, self._limits, self._qualify = settings, limits, qualify
        self._changing = asyncio.Lock()
        self._observer: Observer = _Silent()
        self._check(dict.fromkeys(bundles, ()))
        self._served = {name: LoadedBundle(name, bundle, settings) for name, bundle in bundles.items()}
        self._check({name: served.session.adapters for name, served in self._served.items()})
        self._ending = set[asyncio.Task[None]]()

    def start(self, observer: Observer) -> None:
        """Begin to run; inside an event loop."""
        self._observer = observer
        for served in self._served.values():
            served.start(self._limits, observer)

    async def stop(self) -> None:
        """Answer what waits, then end."""
        await asyncio.gather(*self._ending, *(served.stop() for served in self._served.values()))

    @property
    def served(self) -> tuple[LoadedBundle, ...]:
        """The bundles."""
        return tuple(self._served.values())

    def names(self) -> dict[str, Target]:
        """Return all models by the names that are shown: the shortest that each can be called by."""
        found = {}
        for served in self._served.values():
            found[served.name] = Target(served, None)
            for adapter in filter(served.has, list(served.digests)):
                name = f"{served.name}/{adapter}" if self._qualify else adapter
                found[name] = Target(served, adapter)
        return found

    def find(self, name: str) -> Target | None:
        """Return the model of a name, if there is one; RefusedError (404) if it has another digest than is asked."""
        name, pin, digest = name.partition(PIN)
        found = self._named(name)
        if found is not None and pin and found.digest != digest:
            raise RefusedError(404, f"model `{name}` has the digest sha256:{found.digest}; asked for was {digest}")
        return found

    def _named(self, name: str) -> Target | None:
        first, slash, rest = name.partition("/")
        if slash:
            served = self._served.get(first)
            return Target(served, rest) if served is not None and served.has(rest) else None
        if name in self._served:
            return Target(self._served[name], None)
        found = [served for served in self._served.values() if served.has(name)]
        return Target(found[0], name) if len(found) == 1 else None

    def only(self) -> LoadedBundle:
        """Return the one bundle; RequestError if there are several."""
        if len(self._served) > 1:
            raise RequestError(
                "no model is named, and there are several bundles",
                expected=f"one of {listed(self.names())}",
                fix="name a model; that of a bundle's base has the bundle's name",
            )
        return self.served[0]

    async def load(
        self, extra: LoadedAdapter, *, bundle: str | None = None, keep: Collection[Target] = ()
    ) -> LoadedBundle:
        """Load an adapter beside those of the bundle that it was built for.

        Where as many are loaded as may be, wait until one that was found by its name is idle, and unload it.

        Args:
            extra: the adapter.
            bundle: the name of its bundle. Default: the one that it was built for.
            keep: models that stay, since the same request needs them.

        Raises:
            RefusedError: 404, there is no such bundle; 409, no adapter may be unloaded; 503, all that may are in use.
            InputError: as `Session.load`.
        """
        check_name(extra.name)
        try:
            async with asyncio.timeout(self._limits.request_timeout):
                while True:
                    async with self._changing:  # or several at once would each see room for one
                        loaded = sum(len(served.extras) for served in self._served.values())
                        leaving = any(extra.name in served.closing for served in self._served.values())
                        if loaded < self._limits.max_adapters and not leaving:
                            return await self._load(extra, bundle)
                    await (asyncio.sleep(_POLL) if leaving else self._make_room(keep))
        except TimeoutError:
            words = f"{self._limits.max_adapters} adapters are loaded and in use; try again later"
            raise RefusedError(503, words, again=1) from None

    async def _load(self, extra: LoadedAdapter, bundle: str | None) -> LoadedBundle:
        served = self._for(extra, bundle)
        taken = {} if self._qualify else self._served
        if extra.name in taken or any(extra.name in other.digests for other in taken.values() if other is not served):
            raise RequestError("a model of this name is there already", found=f"`{extra.name}`", fix="use another name")
        await asyncio.to_thread(served.load, extra)
        return served

    async def _make_room(self, keep: Collection[Target]) -> None:
        """Unload an adapter that was found by its name: the least recently used one, of the idle ones if there are any.

        New requests cannot name it any more, so that it becomes idle however many clients use it.
        """
        found = [
            Target(one, extra.name) for one in self._served.values() for extra in one.extras.values() if extra.found
        ]
        others = [target for target in found if target not in keep]
        if not others:
            words = "one request names more adapters than can be loaded" if found else "unload one first"
            raise RefusedError(409, f"{self._limits.max_adapters} adapters are loaded; {words}")
        free = [target for target in others if target.served.has(str(target.adapter))]
        if free:
            await self._unload(min(free, key=lambda one: (one.is_busy, one.served.used[one.adapter])))
        else:  # those that may be unloaded are being unloaded
            await asyncio.sleep(_POLL)

    @staticmethod
    async def _unload(target: Target) -> None:
        """Forget an adapter when no request uses it any more."""
        served, adapter = target.served, str(target.adapter)
        served.closing.add(adapter)
        try:
            await served.idle(adapter)
            served.forget(adapter)
        finally:
            served.closing.discard(adapter)

    def _for(self, extra: LoadedAdapter, bundle: str | None) -> LoadedBundle:
        """Return the bundle that an adapter was built for; if that is none, the first one, which says what is wrong."""
        if bundle is not None:
            if bundle not in self._served:
                raise RefusedError(404, f"there is no bundle `{bundle}`")
            return self._served[bundle]
        parse_adapter(extra.data, f"adapter `{extra.name}`")
        version = model_version_of(extra.data, f"adapter `{extra.name}`")
        fitting = [one for one in self._served.values() if one.bundle.manifest.model_version == version]
        return next(iter(fitting), self.served[0])

    async def unload(self, name: str) -> None:
        """Forget an adapter when no request uses it any more.

        Loads and reloads go on meanwhile: a request that uses it may be waiting for one.

        Raises:
            RefusedError: 404, there is no such model; 409, it is the base of a bundle; 503, it is still in use.
        """
        target = self._named(name)
        if target is None:
            raise RefusedError(404, f"there is no model `{name}`; expected one of {listed(self.names())}")
        if target.adapter is None:
            raise RefusedError(409, f"`{name}` is the base of a bundle, which is served until the server ends")
        try:
            async with asyncio.timeout(self._limits.request_timeout):
                served = None
                while target is not None and target.served is not served:  # again where its bundle was exchanged
                    await self._unload(target)
                    served, target = target.served, self._named(name)
        except TimeoutError:
            raise RefusedError(503, f"`{name}` is still in use; try again later", again=1) from None

    async def reload(self, name: str, fresh: Bundle | None = None) -> bool:
        """Serve what lies in the folder of a bundle now; return whether it is another one.

        Requests that have begun finish on the old session, which ends after the last of them.

        Raises:
            RefusedError: 404, there is no such bundle.
            FileError, FormatError, UsageError: the new one cannot be served; the old one is served further.
        """
        async with self._changing:
            if name not in self._served:
                raise RefusedError(404, f"there is no bundle `{name}`")
            old = self._served[name]
            bundle = await asyncio.to_thread(old.bundle.reload) if fresh is None else fresh
            if bundle is old.bundle:
                return False
            extras = [one for one in old.extras.values() if not one.found]
            new = await asyncio.to_thread(LoadedBundle, name, bundle, self._settings, extras)
            adapters = {other.name: other.session.adapters for other in self._served.values()}
            self._check({**adapters, name: new.session.adapters})
            new.start(self._limits, self._observer)
            self._served = {**self._served, name: new}
            task = asyncio.create_task(self._end(old))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            return True

    @staticmethod
    async def _end(old: LoadedBundle) -> None:
        await old.idle(altogether=True)
        await old.stop()

    def _check(self, adapters: Mapping[str, Sequence[str]]) -> None:
        """Refuse names that two models have."""
        if self._qualify:
            return
        owners: dict[str, str] = {}
        for bundle, names in adapters.items():
            for name in (bundle, *names):
                other = owners.setdefault(name, bundle)
                if other != bundle or (name == bundle and names.count(name)):
                    if name in (bundle, other):
                        fix = f"give that bundle another name, OTHER=FOLDER, or {argument('qualify', True)}"
                        raise UsageError("a bundle and an adapter have one name", found=f"`{name}`", fix=fix)
                    raise UsageError(
                        "two models have one name",
                        found=f"`{name}` in `{other}` and in `{bundle}`",
                        fix=f"give {argument('qualify', True)}, and name them `{other}/{name}` and `{bundle}/{name}`",
                    )


def listed(names: Mapping[str, object]) -> str:
    """Return the first of some names as words."""
    shown = quoted(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "none"


def named_bundles(places: Sequence[str]) -> dict[str, Bundle]:
    """Open bundles by name: that of the folder or of the repository, or what stands before `=`.

    Args:
        places: folders, or references such as `oci://host/repository:tag`, which are fetched.

    Raises:
        UsageError: two have one name.
        InputError: one cannot be opened, or no model may have its name.
    """
    found: dict[str, Bundle] = {}
    for place in places:
        name, sign, path = place.partition("=")
        if not sign or "/" in name:
            path, is_remote = place, "://" in place
            name = re.split("[@:]", place.rpartition("/")[2])[0] if is_remote else Path(place).resolve().name
        check_name(name)
        if name in found:
            raise UsageError("two bundles have one name", found=f"`{name}`", fix=f"give one as OTHER={path}")
        found[name] = Bundle.open(locate(path, "artifact").path)
    return found
