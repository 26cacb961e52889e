"""Learners of a training job: a new adapter, a fusion of adapters, a student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adapter_export.bases.forms import ArchiveBase
from adapter_export.option import changed
from adapter_export.tables import number_of
from adapter_export.training.fusion import FusionSpec
from adapter_export.training.job import Start, Trained, TrainingJob
from adapter_export.words import quoted

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.kinds import Kind
    from adapter_export.graph.tasks import Task
    from adapter_export.torch_backend.base.torch_base import TorchBase
    from adapter_export.training.loop.settings import DistillationLoss
    from adapter_export.training.loop.task_files import TextTask


@dataclass(frozen=True)
class NewAdapter:
    """A new adapter with a new head, or with the base head.

    Attributes:
        kind: kind of the adapter, with its sites.
        name: name of the adapter.
        scheme: initialization of its weights; `None` is the default of the kind.
        options: options of the kind as given, for the record.
    """

    kind: Kind
    name: str
    scheme: str | None
    options: Mapping[str, Any]
    task: None = None

    def begin(self, job: TrainingJob, rows: TextTask) -> Start:
        """Return the base with the adapter attached."""
        from adapter_export.torch_backend.attach import attach
        from adapter_export.training.loop.init_adapter import init_adapter

        base, first = job.base, job.first_head(rows)
        sites = base.sites.complete
        fresh = init_adapter(
            self.kind,
            sites,
            name=self.name,
            base=base.fingerprint,
            scheme=self.scheme,
            seed=job.loop.seed,
            head=first.head,
        )
        scheme = self.scheme or self.kind.scheme
        facts = {"initialisation": scheme, **self.options}
        return Start(attach(base.torch, first.onto(fresh), sites=sites), facts, f"init `{scheme}`")


@dataclass(frozen=True)
class NewFusion:
    """A fusion of frozen adapters with a new head, or with the base head.

    Attributes:
        members: the adapters.
        spec: type of the fusion, and its options.
        name: name of the fusion.
    """

    members: Sequence[Adapter]
    spec: FusionSpec
    name: str
    task: None = None

    def begin(self, job: TrainingJob, rows: TextTask) -> Start:
        """Return the base with the fusion attached."""
        from adapter_export.torch_backend.attach import attach

        first, seed = job.first_head(rows), job.loop.seed
        assert first.head is not None  # fusions always have a head: they cannot be trained to generate
        made, learned = self.spec.fuse(job.base, self.members, self.name, first.head, seed)
        model = attach(job.base.torch, first.onto(made), sites=job.base.sites.complete, learned=learned)
        # record these two from the loop, which fills in defaults
        of_loop = ("fusion_temperature_decay", "value_penalty")
        options = {name: value for name, value in changed(self.spec).items() if name not in of_loop}
        facts = {"fusion": self.spec.fusion, **options}
        return Start(model, facts, f"new fusion of {quoted(adapter.name for adapter in self.members)}")


@dataclass(frozen=True)
class NewStudent:
    """A base with a head, whose weights are all trained.

    Attributes:
        layers: indices of the layers it keeps.
        teacher: adapter of the teacher; `None` to learn from labels only, with a new head.
        loss: the distillation loss.
    """

    layers: tuple[int, ...]
    teacher: Adapter | None
    loss: DistillationLoss

    @property
    def task(self) -> Task | None:
        """Task of the teacher."""
        return None if self.teacher is None else self.teacher.task

    def begin(self, job: TrainingJob, rows: TextTask) -> Start:
        """Return the student, and its teacher with the hidden states before each kept layer exposed."""
        from adapter_export.graph.adapter import BASE_HEAD, HEAD
        from adapter_export.graph.adapter import Adapter as AdapterType
        from adapter_export.torch_backend.attach import AdaptedModel
        from adapter_export.torch_backend.base.derive import ends_of, layers_of, with_layers
        from adapter_export.training.loop.distil_loop import Student, Teacher
        from adapter_export.training.loop.init_adapter import head_alone

        base, sites, torch_base = job.base, job.base.sites.complete, job.base.torch
        if len(self.layers) < len(layers_of(sites)):
            torch_base = with_layers(torch_base, sites, self.layers)
        its = ArchiveBase(None, base.options, loaded=torch_base).sites.complete
        if self.teacher is None:
            first = job.first_head(rows)
            assert first.head is not None  # students always have a head: they cannot be trained to generate
            adapter = first.onto(head_alone(first.head, BASE_HEAD, torch_base.fingerprint, seed=job.loop.seed))
            model = Student(torch_base, adapter, its)
            return Start(model, self._facts, self._origin, compared=(model,))
        weights = {name: tensor for name, tensor in self.teacher.weights.items() if name.startswith(f"{HEAD}.")}
        adapter = AdapterType(BASE_HEAD, "base_head", torch_base.fingerprint, {}, {}, weights, self.teacher.head)
        seen = [ends_of(its, layer)[0] for layer in layers_of(its)[1:]]
        matched = [ends_of(sites, layer)[0] for layer in self.layers[1:]]
        final = len(base.torch.axes(sites.final))
        if any(len(base.torch.axes(value)) != final for value in matched):  # the base flattens batch and tokens
            seen, matched = [], []
        model = Student(torch_base, adapter, its, seen)
        teacher = Teacher(AdaptedModel(base.torch, self.teacher, sites, seen=matched), self.loss)
        return Start(model, self._facts, self._origin, teacher, compared=(model, teacher.model))

    @property
    def _facts(self) -> Mapping[str, Any]:
        taught = {} if self.teacher is None else {"teacher": self.teacher.name, **asdict(self.loss)}
        return {"layers": list(self.layers), **taught}

    @property
    def _origin(self) -> str:
        return f"all weights of {number_of(len(self.layers), 'layer')} learn"

    def student(self, done: Trained) -> TorchBase:
        """Return the trained student as a base with its head and the training record."""
        from adapter_export.training.loop.distil_loop import Student

        assert isinstance(done.model, Student)  # `begin` returns one
        return done.model.to_base(done.record)
