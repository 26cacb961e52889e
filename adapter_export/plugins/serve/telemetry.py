"""Telemetry of a running server: Prometheus metrics, a JSON line for each request, and OpenTelemetry traces."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from adapter_export.plugins.serve.models import LoadedBundle
from adapter_export.runtime.loaded_adapters import Counts

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PREFIX = "adapter_export"
_NO_MODEL = "-"

_log = logging.getLogger("adapter_export.plugins.serve")


class Metrics:
    """Prometheus metrics of this process, or of all workers if `PROMETHEUS_MULTIPROC_DIR` is set."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        kind: dict[str, Any] = {"registry": self._registry, "namespace": _PREFIX}
        self._requests = Counter("requests", "Requests by model and status.", ("model", "status"), **kind)
        self._seconds = Histogram(
            "request_seconds", "Seconds from a request to its answer.", ("model",), buckets=_SECONDS, **kind
        )
        self._rows = Counter("rows", "Computed rows.", ("bundle",), **kind)
        self._calls = Histogram("call_rows", "Rows per call of a session.", ("bundle",), buckets=_ROWS, **kind)
        self._steps = Histogram(
            "decoding_rows",
            "Rows per call that generates tokens.",
            ("bundle",),
            buckets=_ROWS,
            **kind,
        )
        self._waits = Histogram(
            "wait_seconds", "Queue time of the first row of a call in seconds.", ("bundle",), buckets=_SECONDS, **kind
        )
        self._waiting = Gauge("waiting_rows", "Queued rows.", ("bundle",), multiprocess_mode="livesum", **kind)
        self._resident = Gauge(
            "resident_adapters", "Adapters in a cache.", ("bundle", "cache"), multiprocess_mode="livesum", **kind
        )
        self._loads = Counter("adapter_loads", "Adapters loaded into a cache.", ("bundle", "cache"), **kind)
        self._evictions = Counter("adapter_evictions", "Adapters evicted from a cache.", ("bundle", "cache"), **kind)
        self._hits = Counter("adapter_hits", "Adapters found in a cache.", ("bundle", "cache"), **kind)
        self._reloads = Counter("reloads", "Reloaded bundles.", ("bundle",), **kind)
        self._shadows = Counter("shadow_rows", "Rows of shadows by outcome.", ("route", "outcome"), **kind)
        self._last_counts: dict[tuple[int, str], Counts] = {}

    def request(self, model: str | None, status: int, seconds: float) -> None:
        """Count a request. `model` is `None` if it is unknown, so that clients cannot create labels."""
        name = model or _NO_MODEL
        self._requests.labels(name, str(status)).inc()
        self._seconds.labels(name).observe(seconds)

    def call(self, served: LoadedBundle, rows: int, waited: float) -> None:
        """Count a call of a session, and the cache events since the last one."""
        self._rows.labels(served.name).inc(rows)
        self._calls.labels(served.name).observe(rows)
        self._waits.labels(served.name).observe(waited)
        self.look(served)

    def step(self, served: LoadedBundle, rows: int) -> None:
        """Count a call that gives each of its rows a token."""
        self._steps.labels(served.name).observe(rows)

    def look(self, served: LoadedBundle) -> None:
        """Update the queue and cache metrics of a bundle."""
        self._waiting.labels(served.name).set(served.waiting)
        statistics = served.session.statistics
        for cache, counts in (("files", statistics.files), ("bank", statistics.bank)):
            before = self._last_counts.get((id(served.session), cache), Counts())
            self._last_counts[id(served.session), cache] = counts
            names = (served.name, cache)
            self._resident.labels(*names).set(counts.resident)
            self._loads.labels(*names).inc(counts.loads - before.loads)
            self._evictions.labels(*names).inc(counts.evictions - before.evictions)
            self._hits.labels(*names).inc(counts.hits - before.hits)

    def count_reload(self, served: LoadedBundle) -> None:
        """Count a reload, and forget the old session."""
        self._reloads.labels(served.name).inc()
        self._last_counts = {key: counts for key, counts in self._last_counts.items() if key[0] == id(served.session)}

    def shadow(self, route: str, outcome: str, rows: int = 1) -> None:
        """Count rows of a shadow: `same`, `different`, `failed` or `dropped`."""
        self._shadows.labels(route, outcome).inc(rows)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget_process(process: int, folder: Path) -> None:
    """Remove the gauges of a worker that has ended."""
    mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


class _Line(logging.Formatter):
    """Formats a record as one line of JSON. Text of clients is escaped and cannot forge lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts = record.args if isinstance(record.args, Mapping) else {}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.msg if facts else record.getMessage(),
            **facts,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(*, quiet: bool) -> None:
    """Log JSON lines to stderr; with `quiet`, only warnings and errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    for logger in (_log, logging.getLogger("uvicorn.error")):
        logger.handlers, logger.propagate = [handler], False
    _log.setLevel(logging.WARNING if quiet else logging.INFO)


def log(event: str, *, level: int = logging.INFO, trace: bool = False, **facts: object) -> None:
    """Log an event with its facts; `trace` adds the current traceback."""
    if _log.isEnabledFor(level):
        _log.log(level, event, facts, exc_info=trace)


class Tracer:
    """OpenTelemetry spans of requests, if the SDK is installed and its variables name an exporter."""

    def __init__(self) -> None:
        self._tracer: Any = _tracer()

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """Trace a request as part of the trace in its headers; yields the span, or `None`."""
        if self._tracer is None:
            yield None
            return
        from opentelemetry import propagate, trace  # noqa: PLC0415 - an optional part of the extra

        context = propagate.extract(headers)
        with self._tracer.start_as_current_span(name, context, kind=trace.SpanKind.SERVER) as span:
            yield span


def _tracer() -> Any:
    """Return a tracer configured by `OTEL_*`; `None` if they name no installed exporter."""
    chosen = os.environ.get("OTEL_TRACES_EXPORTER", "")
    endpoint = any(
        os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (chosen or endpoint) or chosen == "none":
        return None
    if not _installed("opentelemetry.sdk"):
        log("no traces", level=logging.WARNING, reason="opentelemetry-sdk is not installed")
        return None
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an optional part of the extra
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # noqa: PLC0415

    provider = TracerProvider()  # reads OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER
    if chosen == "console":
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    elif not _installed("opentelemetry.exporter.otlp.proto.http"):
        log("no traces", level=logging.WARNING, reason="opentelemetry-exporter-otlp-proto-http is not installed")
        return None
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("adapter_export.plugins.serve")  # not global: FastAPI would trace requests as well


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
