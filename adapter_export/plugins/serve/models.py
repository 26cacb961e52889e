"""The models of a server by name: bases, adapters of the bundles, and adapters loaded later."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from adapter_export.address import locate
from adapter_export.errors import RequestError, UsageError
from adapter_export.graph.adapter import check_name
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.plugins.serve.collector import Collector
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.server_settings import Limits, SessionSettings
from adapter_export.plugins.serve.text_queue import TextQueue
from adapter_export.providers import PROVIDERS
from adapter_export.runtime import Bundle, Session, check_session
from adapter_export.runtime.adapter_file import model_version_of, parse_adapter
from adapter_export.runtime.answerer import Reader
from adapter_export.runtime.bundle import RESIDENT
from adapter_export.runtime.generation.text_writer import TextWriter
from adapter_export.runtime.generation.transcriber import Transcriber
from adapter_export.runtime.self_check import check_joined_rows
from adapter_export.tables import number_of, verb_for
from adapter_export.words import argument, quoted

PIN = "@sha256:"
"""Separates the name of a model from its required digest."""

_SHOWN = 20
"""Maximum names in an error message."""

_POLL = 0.005
"""Seconds between checks of whether an adapter is in use."""

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
    """Compare a session with golden data of the base and the resident adapters, and with golden texts of joined rows.

    A provider that is proved when it opens has been compared with the former.

    Raises:
        FileError, FormatError: as in `check_session` and `check_joined_rows`.
    """
    adapters = None if settings.resident is None else ()
    if not PROVIDERS[session.provider].proved:
        check_session(bundle, session, adapters)
    check_joined_rows(bundle, session, adapters)


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that is not part of the bundle.

    Attributes:
        name: its name.
        data: the bytes of its `.onnx_adapter` file.
        labels: the names of its classes.
        task: its task.
        by_name: whether a request loaded it by name. Such an adapter is unloaded when others need the room, and loaded
            again on demand.
        proof: a bundle with golden data of the adapter, with which it is compared before calls can name it.
    """

    name: str
    data: bytes = field(repr=False)
    labels: tuple[str, ...] | None = None
    task: Task | ProblemType | None = None
    by_name: bool = False
    proof: Bundle | None = None

    @property
    def digest(self) -> str:
        """The sha256 of its file."""
        return hashlib.sha256(self.data).hexdigest()

    def check(self, session: Session) -> None:
        """Compare the results of a session that has loaded it with its golden data; errors as of `check_session`."""
        if self.proof is not None:
            check_session(self.proof, session, [self.name])
            check_joined_rows(self.proof, session, [self.name])


def _reader(bundle: Bundle, session: Session) -> Reader | None:
    """Return the reader of texts or files of a bundle; `None` if clients must send arrays."""
    if bundle.manifest.text is not None:
        return bundle.texts(session)
    if bundle.manifest.media is not None:
        with suppress(RequestError):  # unknown preprocessing, or the base has inputs that files do not fill
            return bundle.files(bundle.manifest.media.medium, session)
    return None


def _writer(bundle: Bundle, session: Session) -> TextWriter | None:
    """Return the writer of a bundle; `None` if it has no tokenizer, or does not generate text."""
    with suppress(RequestError):
        return bundle.writer(session)
    return None


class LoadedBundle:
    """A bundle with its session and its queues.

    Args:
        name: the name of the bundle.
        bundle: the bundle.
        settings: settings of the session.
        extras: further adapters to load. Those that do not fit the bundle are listed in `dropped`.
    """

    def __init__(
        self, name: str, bundle: Bundle, settings: SessionSettings, extras: Sequence[LoadedAdapter] = ()
    ) -> None:
        self.name, self.bundle, self.settings = name, bundle, settings
        self.session = open_session(bundle, settings)
        if bundle.verified:  # otherwise another process has checked this copy
            check_resident(bundle, self.session, settings)
        self.reader, self._writer = _reader(bundle, self.session), _writer(bundle, self.session)
        hashes = {file.path: file.sha256 for file in bundle.manifest.files}
        self.digests = {record.name: hashes[record.onnx_adapter] for record in bundle.manifest.adapters}
        self.extras: dict[str, LoadedAdapter] = {}
        self.dropped: list[str] = []
        self.closing = set[str]()  # new calls may not name them
        self.busy, self.used = Counter[str | None](), Counter[str | None]()
        for extra in extras:
            if model_version_of(extra.data, extra.name) == bundle.manifest.model_version and (
                extra.name not in self.session.adapters
            ):
                self.load(extra)
            else:
                self.dropped.append(extra.name)
        self.collector: Collector | None = None
        self.texts: TextQueue | None = None  # only if the bundle generates text

    def load(self, extra: LoadedAdapter) -> None:
        """Load a further adapter, which calls may name from then on; errors as in `Session.load_bytes` and `check`."""
        self.session.load_bytes(
            extra.name, extra.data, labels=extra.labels, task=extra.task, where=f"adapter `{extra.name}`"
        )
        with ExitStack() as undo:
            undo.callback(self.session.unload, extra.name)
            extra.check(self.session)
            undo.pop_all()
        self.extras[extra.name] = replace(extra, proof=None)
        self.digests[extra.name] = extra.digest
        self.used[extra.name] = next(_uses)  # otherwise it would be the first to be unloaded

    def forget(self, adapter: str) -> None:
        """Unload an adapter that no request uses."""
        self.session.unload(adapter)
        del self.digests[adapter]
        self.extras.pop(adapter, None)

    def check_read(self, content: object) -> None:
        """Refuse texts if the bundle reads files, since a text could be a path on this machine, and vice versa."""
        reads = "`inputs` only" if self.reader is None else f"{self.reader.word}s"
        if self.reader is None or isinstance(content, bytes) != (self.reader.word != "text"):
            actual = "a file" if isinstance(content, bytes) else "a text"
            raise RequestError(f"bundle `{self.name}` reads {reads}", found=actual)

    def has(self, adapter: str) -> bool:
        """Return whether calls may name an adapter."""
        return adapter in self.digests and adapter not in self.closing

    @property
    def waiting(self) -> int:
        """Number of queued rows."""
        return sum(0 if queue is None else queue.waiting for queue in (self.collector, self.texts))

    def start(self, limits: Limits, observer: Observer) -> None:
        """Start the queues inside a running event loop."""
        self.collector = Collector(
            self.session.run_many,
            calls=self.settings.concurrency,
            most=self.settings.max_batch_size,
            most_waiting=limits.max_queue,
            most_tokens=limits.max_queue_tokens,
            max_wait=self.settings.max_batch_delay / 1000,
            on_call=lambda rows, waited: observer.call(self, rows, waited),
        )
        if self._writer is not None:
            self.texts = TextQueue(
                self._writer,
                rows=self.settings.max_batch_size,
                tokens=self.settings.max_batch_tokens,
                most_waiting=limits.max_queue,
                most_tokens=limits.max_queue_tokens,
                on_step=lambda rows: observer.step(self, rows),
            )

    def transcribing(self) -> tuple[TextQueue, Transcriber]:
        """Return the queue of texts, and what opens those of files; RequestError if the bundle writes none of files."""
        transcriber = self.bundle.transcriber(self.session)
        return self.generating(), transcriber

    def generating(self) -> TextQueue:
        """Return the queue of texts; RequestError if the bundle has no tokenizer, or does not generate text."""
        if self.texts is None:
            self.bundle.writer(self.session)  # raises RequestError
            raise RequestError("the bundle is not served yet", where=f"bundle `{self.name}`")
        return self.texts

    async def idle(self, adapter: str | None = None, *, altogether: bool = False) -> None:
        """Wait until no request uses an adapter; with `altogether`, until no request runs at all."""
        while self.busy.total() if altogether else self.busy[adapter]:
            await asyncio.sleep(_POLL)

    async def stop(self) -> None:
        """Answer queued requests, then end."""
        if self.collector is not None:
            await self.collector.stop()
        if self.texts is not None:
            await self.texts.stop()


@dataclass(frozen=True)
class Target:
    """A model: a bundle with one of its adapters; `None` is the base."""

    served: LoadedBundle
    adapter: str | None

    @property
    def name(self) -> str:
        """The name of the model, with its bundle."""
        return self.served.name if self.adapter is None else f"{self.served.name}/{self.adapter}"

    @property
    def digest(self) -> str:
        """The sha256 of the adapter's file; for a base, the checksum of the manifest."""
        if self.adapter is None:
            return self.served.bundle.manifest.checksum or self.served.bundle.manifest.base.rpartition(":")[2]
        return self.served.digests[self.adapter]

    @property
    def is_busy(self) -> bool:
        """True while a request uses the model."""
        return self.served.busy[self.adapter] > 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Prevent unloading until the block ends."""
        self.served.busy[self.adapter] += 1
        self.served.used[self.adapter] = next(_uses)
        try:
            yield
        finally:
            self.served.busy[self.adapter] -= 1


class Models:
    """Models by name.

    An adapter has its own name, and `bundle/adapter` or `bundle:adapter`; a base has the name of its bundle. Either may
    be pinned to a digest. Changes run in the event loop, one at a time. Running requests finish with the models that
    they started with.
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
        """Start the queues inside a running event loop."""
        self._observer = observer
        for served in self._served.values():
            served.start(self._limits, observer)

    async def stop(self) -> None:
        """Answer queued requests, then end."""
        await asyncio.gather(*self._ending, *(served.stop() for served in self._served.values()))

    @property
    def served(self) -> tuple[LoadedBundle, ...]:
        """The bundles."""
        return tuple(self._served.values())

    def names(self) -> dict[str, Target]:
        """Return all models by their shortest names."""
        targets = {}
        for served in self._served.values():
            targets[served.name] = Target(served, None)
            for adapter in filter(served.has, list(served.digests)):
                name = f"{served.name}/{adapter}" if self._qualify else adapter
                targets[name] = Target(served, adapter)
        return targets

    def find(self, name: str) -> Target | None:
        """Return a model by name; RefusedError (404) if its digest differs from the pinned one."""
        name, pin, digest = name.partition(PIN)
        target = self._named(name)
        if target is not None and pin and target.digest != digest:
            raise RefusedError(404, f"model `{name}` has the digest sha256:{target.digest}, not {digest}")
        return target

    def _named(self, name: str) -> Target | None:
        if name in self._served:
            return Target(self._served[name], None)
        first, separator, rest = name.partition("/" if "/" in name else ":")
        if separator:
            served = self._served.get(first)
            return Target(served, rest) if served is not None and served.has(rest) else None
        matches = [served for served in self._served.values() if served.has(name)]
        return Target(matches[0], name) if len(matches) == 1 else None

    def only(self) -> LoadedBundle:
        """Return the only bundle; RequestError if there are several."""
        if len(self._served) > 1:
            raise RequestError(
                "the call names no model, and there are several bundles",
                expected=f"one of {listed(self.names())}",
                fix="name a model; the base of a bundle has the name of the bundle",
            )
        return self.served[0]

    def _full(self) -> str:
        most = self._limits.max_adapters
        return f"{number_of(most, 'adapter')} {verb_for(most, 'are')} loaded"

    async def load(
        self, extra: LoadedAdapter, *, bundle: str | None = None, keep: Collection[Target] = ()
    ) -> LoadedBundle:
        """Load an adapter into the bundle that it was built for.

        At the limit of loaded adapters, unload one that was loaded by name, as soon as it is idle.

        Args:
            extra: the adapter.
            bundle: the name of a bundle. Default: the one that the adapter was built for.
            keep: models to keep loaded, since the same request uses them.

        Raises:
            RefusedError: 404, unknown bundle; 409, no adapter may be unloaded; 503, all of them stay in use.
            InputError: as `Session.load`.
        """
        check_name(extra.name)
        try:
            async with asyncio.timeout(self._limits.request_timeout) as limit:
                while True:
                    async with self._changing:  # concurrent loads must not share the last place
                        loaded = sum(len(served.extras) for served in self._served.values())
                        leaving = any(extra.name in served.closing for served in self._served.values())
                        if loaded < self._limits.max_adapters and not leaving:
                            limit.reschedule(None)  # its thread would go on, and load it after the error
                            return await self._load(extra, bundle)
                    await (asyncio.sleep(_POLL) if leaving else self._make_room(keep))
        except TimeoutError:
            words = f"{self._full()} and in use; try again later"
            raise RefusedError(503, words, again=1) from None

    async def _load(self, extra: LoadedAdapter, bundle: str | None) -> LoadedBundle:
        served = self._for(extra, bundle)
        models = {} if self._qualify else self._served
        if extra.name in models or any(extra.name in other.digests for other in models.values() if other is not served):
            raise RequestError("a model with this name exists", found=f"`{extra.name}`", fix="use another name")
        await asyncio.to_thread(served.load, extra)
        return served

    async def _make_room(self, keep: Collection[Target]) -> None:
        """Unload the least recently used adapter that was loaded by name, preferably an idle one.

        New requests cannot name it meanwhile, so it becomes idle under any load.
        """
        replaceable = [
            Target(served, extra.name)
            for served in self._served.values()
            for extra in served.extras.values()
            if extra.by_name
        ]
        others = [target for target in replaceable if target not in keep]
        if not others:
            words = "one request names more adapters than can be loaded" if replaceable else "unload one first"
            raise RefusedError(409, f"{self._full()}; {words}")
        free = [target for target in others if target.served.has(str(target.adapter))]
        if free:
            await self._unload(min(free, key=lambda target: (target.is_busy, target.served.used[target.adapter])))
        else:  # all candidates are being unloaded
            await asyncio.sleep(_POLL)

    @staticmethod
    async def _unload(target: Target) -> None:
        """Unload an adapter as soon as no request uses it."""
        served, adapter = target.served, str(target.adapter)
        served.closing.add(adapter)
        try:
            await served.idle(adapter)
            served.forget(adapter)
        finally:
            served.closing.discard(adapter)

    def _for(self, extra: LoadedAdapter, bundle: str | None) -> LoadedBundle:
        """Return the bundle that an adapter was built for. Default: the first one, whose `load` raises the error."""
        if bundle is not None:
            if bundle not in self._served:
                raise RefusedError(404, f"there is no bundle `{bundle}`")
            return self._served[bundle]
        parse_adapter(extra.data, f"adapter `{extra.name}`")
        version = model_version_of(extra.data, f"adapter `{extra.name}`")
        fitting = [served for served in self._served.values() if served.bundle.manifest.model_version == version]
        return next(iter(fitting), self.served[0])

    async def unload(self, name: str) -> None:
        """Unload an adapter as soon as no request uses it.

        Loads and reloads continue meanwhile, since a request that uses the adapter may wait for one.

        Raises:
            RefusedError: 404, unknown model; 409, it is the base of a bundle; 503, it is still in use.
        """
        target = self._named(name)
        if target is None:
            raise RefusedError(404, f"there is no model `{name}`; expected one of {listed(self.names())}")
        if target.adapter is None:
            raise RefusedError(409, f"`{name}` is the base of a bundle and cannot be unloaded")
        try:
            async with asyncio.timeout(self._limits.request_timeout):
                served = None
                while target is not None and target.served is not served:  # again if its bundle was reloaded
                    await self._unload(target)
                    served, target = target.served, self._named(name)
        except TimeoutError:
            raise RefusedError(503, f"`{name}` is still in use; try again later", again=1) from None

    async def reload(self, name: str, fresh: Bundle | None = None) -> bool:
        """Reopen a bundle from its folder; return whether it has changed.

        Running requests finish on the old session.

        Raises:
            RefusedError: 404, unknown bundle.
            FileError, FormatError, UsageError: the new bundle is refused, and the old one is still served.
        """
        async with self._changing:
            if name not in self._served:
                raise RefusedError(404, f"there is no bundle `{name}`")
            old = self._served[name]
            bundle = await asyncio.to_thread(old.bundle.reload) if fresh is None else fresh
            if bundle is old.bundle:
                return False
            extras = [extra for extra in old.extras.values() if not extra.by_name]
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
        """Raise UsageError if two models have the same name."""
        if self._qualify:
            return
        owners: dict[str, str] = {}
        for bundle, names in adapters.items():
            for name in (bundle, *names):
                other = owners.setdefault(name, bundle)
                if other != bundle or (name == bundle and names.count(name)):
                    if name in (bundle, other):
                        fix = "give that bundle another name, OTHER=FOLDER, or " + argument("qualify", True)
                        raise UsageError("a bundle and an adapter have the same name", found=f"`{name}`", fix=fix)
                    raise UsageError(
                        "two models have the same name",
                        found=f"`{name}` in `{other}` and in `{bundle}`",
                        fix="give "
                        + argument("qualify", True)
                        + f", and name them `{other}/{name}` and `{bundle}/{name}`",
                    )


def listed(names: Mapping[str, object]) -> str:
    """Return the first names, quoted, and the number of others."""
    shown = quoted(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "none"


def named_bundles(places: Sequence[str]) -> dict[str, Bundle]:
    """Open bundles by name: the name before `=`, or that of the folder or repository.

    Args:
        places: folders, or references such as `oci://host/repository:tag`, which are fetched.

    Raises:
        UsageError: two bundles have the same name.
        InputError: a bundle cannot be opened, or its name is invalid.
    """
    by_name: dict[str, Bundle] = {}
    for place in places:
        name, path = named_place(place)
        if name in by_name:
            raise UsageError("two bundles have the same name", found=f"`{name}`", fix=f"rename one: OTHER={path}")
        by_name[name] = Bundle.open(locate(path, "artifact").path)
    return by_name


def named_place(place: str) -> tuple[str, str]:
    """Return the name of a bundle, and its folder or reference. Raises InputError if the name is invalid."""
    name, sign, path = place.partition("=")
    if not sign or "/" in name:
        path, is_remote = place, "://" in place
        name = re.split("[@:]", place.rpartition("/")[2])[0] if is_remote else Path(place).resolve().name
    check_name(name)
    return name, path
