"""Golden media of a bundle: answers by a reference, replayed the way a client reads images and audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Allowance, Golden
from adapter_export.bundle.report import BASE
from adapter_export.bundle.texts import answer_faults
from adapter_export.errors import AdapterError, InputError, MissingExtraError, RequestError
from adapter_export.format.check_report import Finding
from adapter_export.format.media import (
    GoldenMedia,
    GoldenMediaAnswer,
    GoldenMediaSet,
    GoldenSample,
    MediaRecord,
    format_steps,
)
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import Runner, run
from adapter_export.onnx_backend.slots import HeadSum, adapter_output
from adapter_export.runtime.media_reader import check_answered
from adapter_export.tables import number_of

CHECK = "golden media"
"""Name of the check in reports."""


def check_media(adapters: Sequence[Adapter], record: MediaRecord) -> None:
    """Raise an `AdapterError` for an adapter that reads texts, or was trained with another processor."""
    for adapter in adapters:
        try:
            check_answered(record, adapter.task, f"adapter `{adapter.name}`")
        except InputError as error:
            raise AdapterError(
                error.what, where=error.where, found=error.found, expected=error.expected, fix=error.fix
            ) from error


@dataclass(frozen=True)
class MediaMaker:
    """Makes the answers to golden media.

    Attributes:
        record: media record of the bundle.
        outputs: names of the base's outputs.
        references: computes the answers; never the exported graph.
        allowance: determines the budgets of answers.
    """

    record: MediaRecord
    outputs: Sequence[str]
    references: Runner
    allowance: Allowance

    def sets(
        self, media: GoldenMedia, adapters: Sequence[tuple[Adapter, Golden]], heads: Sequence[HeadSum]
    ) -> GoldenMedia:
        """Return the media with the answers of these adapters added, for adapters with a task."""
        added = [
            self._set(media.samples, adapter, adapter_output(heads, adapter), golden) for adapter, golden in adapters
        ]
        return replace(media, sets=(*media.sets, *filter(None, added)))

    def _set(
        self, samples: Sequence[GoldenSample], adapter: Adapter, output: str | None, golden: Golden
    ) -> GoldenMediaSet | None:
        task = adapter.task
        if task is None or output is None:
            return None
        results = [
            run(self.references, {self.record.input: sample.array[None]}, adapter, self.outputs, output)[output][0]
            for sample in samples
        ]
        budgets = [golden.budgets[output], self.allowance.budget(*results)]
        allowed = max(budgets, key=lambda budget: budget.absolute)
        answers = tuple(
            GoldenMediaAnswer(sample.name, task.answer(result).document(), task.is_decided(result, allowed.absolute))
            for sample, result in zip(samples, results, strict=True)
        )
        return GoldenMediaSet(adapter.name, self.references.description, allowed.absolute, allowed.reason, answers)


def replay_media(bundle: OpenedBundle, names: Sequence[str | None], *, run: bool) -> Iterator[Finding]:
    """Preprocess golden media and answer them the way a client does, and compare inputs and answers.

    `run` is false if the graph is too large to run here.
    """
    record, media = bundle.manifest.media, bundle.media()
    if record is None:
        return
    if media is None or record.steps is None:
        yield Finding.tested(CHECK, BASE, True, f"clients cannot preprocess files: the processor {record.unknown}")
        return
    faults = [] if media.digest == record.digest else [f"made with the processor {media.digest[:12]}…"]
    samples = number_of(len(media.samples), "file")
    detail = f"{samples} within {media.absolute:.1e} of {media.processor}: {format_steps(record.steps)}"
    try:
        faults += [fault for sample in media.samples for fault in _value_faults(record, sample, media.absolute)]
    except MissingExtraError as error:
        detail = "files not read (" + error.what + ")"
    yield Finding.tested(CHECK, BASE, not faults, "; ".join(faults[:3]) or detail)
    sets = {answers.adapter: answers for answers in media.sets}
    for adapter in bundle.manifest.adapters:
        if adapter.name not in names or adapter.task is None:
            continue
        answers, faults = sets.get(adapter.name), []
        if answers is None:
            yield Finding.tested(CHECK, adapter.name, False, "none for this adapter")
        elif run:
            session = bundle.runtime_session()
            arrays = {sample.name: sample.array[None] for sample in media.samples}
            for wanted in answers.answers:
                try:
                    answer = session.answer({record.input: arrays[wanted.sample]}, adapter.name)[0].document()
                    differ = list(answer_faults(answer, wanted.answer, answers.absolute, decided=wanted.decided))
                except RequestError as error:  # NaN, for example
                    differ = [error.what]
                faults += [f"`{wanted.sample}`: " + fault for fault in differ]
            detail = f"{number_of(len(answers.answers), 'answer')} within {answers.absolute:.1e}"
            yield Finding.tested(CHECK, adapter.name, not faults, "; ".join(faults[:3]) or detail)


def compare_processors(digest: str, model: str) -> Finding:
    """Compare the digest of a bundle's processor with that of the model it was built from."""
    detail = "the model's" if digest == model else f"{digest[:12]}…, expected the model's {model[:12]}…"
    return Finding.tested(CHECK, "model", digest == model, f"the processor is {detail}")


def _value_faults(record: MediaRecord, sample: GoldenSample, absolute: float) -> Iterator[str]:
    try:
        contents = record.read(sample.data, f"`{sample.name}`")
    except MissingExtraError:
        raise
    except InputError as error:
        yield f"`{sample.name}` is rejected: {error}"
        return
    values, expected = record.modality.apply(contents, record.steps or ()), sample.array
    if values.shape != expected.shape:
        yield f"`{sample.name}` found {list(values.shape)}, expected {list(expected.shape)}"
    elif not (largest := float(np.abs(values - expected).max())) <= absolute:
        yield f"`{sample.name}` error {largest:.1e}, budget {absolute:.1e}"
