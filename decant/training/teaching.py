"""A loss on a teacher's answers at work: it listens at layers, and keeps what of it is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from decant.checkpoints.checkpoint import Checkpoint, not_a_number
from decant.errors import DecantError, Message
from decant.examples import Examples, arguments
from decant.networks.devices import CPU, computing_on, device_of, find, moved, place_
from decant.networks.execution import as_rows, tensors_of
from decant.networks.tracing import every_layer_called
from decant.seeds import derive_seed
from decant.targets import CLASSES, Target
from decant.training.ensemble import Mean
from decant.training.feature_losses import Features, unknown_layer
from decant.training.soft import Answers, Link, Soft, by_token
from decant.training.spread import Spread

Seen = dict[str, Tensor]
"""What layers gave in the last pass, by module path."""


@dataclass
class Teaching:
    """A loss over (inputs, outputs, labels) for which teachers answer each batch as it was augmented.

    Attributes:
        loss: What is compared.
        teachers: In eval mode; a mean of their outputs is matched, and features are those of the first.
        label_smoothing: Of the labels' share.
        target: What the labels are.
        learners: What of the loss is trained or remembered, for each pair of layers of each of its parts.
        known: The mean of the teachers' outputs for all training examples, on the processor, where that was
            made before; None where teachers answer each batch.
        spread: The processes of the training, whose answers are compared together.
        mean: Which mean of several teachers' outputs is matched.
    """

    loss: Soft
    teachers: Sequence[nn.Module]
    label_smoothing: float = 0.0
    target: Target = CLASSES
    learners: nn.ModuleList = field(default_factory=nn.ModuleList)
    known: Tensor | None = None
    spread: Spread = field(default_factory=Spread)
    mean: Mean = field(default_factory=Mean)
    _seen: tuple[Seen, Seen] = field(default_factory=lambda: ({}, {}))
    _handles: list[RemovableHandle] = field(default_factory=list)
    _progress: float = 0.0
    _rows: Tensor | None = None
    _generator: torch.Generator | None = None
    _answers: Answers | None = None

    @property
    def _features(self) -> list[Features]:
        return [part for part in self.loss.members() if isinstance(part, Features) and part.layers]

    @property
    def needs_rows(self) -> bool:
        """Whether it has to know which examples a batch has."""
        return self.known is not None or any(part.kind == "contrastive" for part in self._features)

    def begin_(self, progress: float, rows: Tensor | None, seed: int) -> None:
        """Set where the training is before a step, of which each call of the loss takes its share in order.

        Args:
            progress: In [0, 1].
            rows: Which examples the step has, [N].
            seed: Of what is drawn in this step.
        """
        self._progress, self._rows = progress, rows
        self._generator = torch.Generator().manual_seed(seed) if self.needs_rows else None

    def __call__(self, inputs: tuple[Tensor, ...], outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch that the student has just answered; shape [].

        Args:
            inputs: This process's share of the batch.
            outputs: The student's answers to the whole batch [N, M].
            labels: Of the whole batch.
        """
        rows = self._taken(len(outputs))
        mean = self._targets(inputs, rows, 1 if labels is None else labels[0].numel())
        if outputs.shape != mean.shape:
            raise DecantError(
                f"The student answers with {outputs.shape[1]} numbers for each example and its teacher with "
                f"{mean.shape[1]}; take a teacher of the same outputs, or a student built for its classes"
            )
        links, drawn = self._links(), (rows, self._generator)
        self._answers = answers = Answers(outputs, mean, labels, self._progress, links, *drawn)
        return self.loss.total(answers, self.label_smoothing, self.target)

    def _every_layer(self) -> AbstractContextManager[None]:
        """Let networks call each of their layers where something listens, and no fused kernel instead."""
        return every_layer_called() if self._features else nullcontext()

    def _links(self) -> tuple[tuple[Link, ...], ...]:
        """Return what layers gave, for each part of the loss; empty for those that compare outputs."""
        if not self._features:
            return ()
        learners = iter(self.learners)
        return tuple(
            self._links_of(part, learners) if isinstance(part, Features) else ()
            for part in self.loss.members()
        )

    def _links_of(self, part: Features, learners: Iterator[nn.Module]) -> tuple[Link, ...]:
        students, teachers = self._seen
        return tuple(
            _link(
                part,
                self.spread.whole(students[own]),
                self.spread.whole(teachers[other]),
                next(learners),
            )
            for own, other in part.layers.items()
        )

    def _taken(self, count: int) -> Tensor | None:
        """Return which examples a batch has: the next of the step's."""
        if self._rows is None:
            return None
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    def _targets(self, inputs: tuple[Tensor, ...], rows: Tensor | None, places: int) -> Tensor:
        """Return the mean of the teachers' outputs for the whole batch, [N, M]."""
        if self.known is not None and rows is not None:
            return self.known[rows.cpu()].to(rows.device)
        with torch.no_grad(), self._every_layer():
            targets = [as_rows(each(*inputs), len(inputs[0])).float() for each in self.teachers]
        return self.spread.whole(self.mean(targets, self.target, places))

    def culprit(self) -> Message:
        """Return which parts of several of the last loss are NaN or infinite; empty where none alone is."""
        if self._answers is None or len(self.loss.members()) == 1:
            return ""
        with torch.no_grad():
            values = [each.item() for each in self.loss.terms(by_token(self._answers, self.target))]
        wrong = [f"loss.parts.{at}" for at, value in enumerate(values) if not math.isfinite(value)]
        if len(wrong) == len(values):
            return " (every part of it: lower the largest of their weights too)"
        whose = "its weight" if len(wrong) == 1 else "their weights"
        return f" ({', '.join(wrong)} alone: lower {whose} too)" if wrong else ""

    # --- what is trained with it

    @contextmanager
    def listening(self, module: nn.Module, train: Examples, seed: int) -> Iterator[list[nn.Parameter]]:
        """Listen at the layers of a student, where it lies; yield what is trained beside it.

        Args:
            module: The student.
            train: What it will learn from.
            seed: Of the first weights of what is trained beside it.

        Raises:
            DecantError: There is no such layer, it gives no tensor, or the features cannot be compared.
        """
        try:
            if self._features:
                self._listen_(module)
                self._build_(module, train, seed)
            yield list(self.learners.parameters())
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            for seen in self._seen:
                seen.clear()
            self._answers = None

    def _listen_(self, module: nn.Module) -> None:
        pairs = [pair for part in self._features for pair in part.layers.items()]
        networks = (("student", module), ("teacher", self.teachers[0]))
        for (who, network), seen, paths in zip(networks, self._seen, zip(*pairs, strict=True), strict=True):
            for path in dict.fromkeys(paths):
                layer = layer_at(network, path, who)
                self._handles.append(layer.register_forward_hook(_recorder(seen, path)))

    def _build_(self, module: nn.Module, train: Examples, seed: int) -> None:
        """Make what is trained or remembered, for the shapes that one pass of both networks shows."""
        place = device_of(module)
        inputs, mode = moved(arguments(train.images[:2]), place), module.training
        with torch.no_grad(), self._every_layer():
            module.eval()(*inputs)
            self.teachers[0](*inputs)
        module.train(mode)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "what is trained beside the student"))
            found = [
                self._learner(part, own, other, len(train))
                for part in self._features
                for own, other in part.layers.items()
            ]
        self.learners = nn.ModuleList(found)
        place_(self.learners, place)

    def _learner(self, part: Features, own: str, other: str, count: int) -> nn.Module:
        student, teacher = (_given(seen, path) for seen, path in zip(self._seen, (own, other), strict=True))
        if wrong := incomparable(part, student.shape, teacher.shape):
            raise DecantError(f"loss.layers: {own} and {other}: {wrong}")
        aligned = _aligned(teacher, student) if part.aligned else teacher
        made = part.learner(student.shape, aligned.shape, count)
        return nn.Identity() if made is None else made

    # --- what an interrupted training is resumed from

    def content(self) -> dict[str, Tensor]:
        """Return what is trained or remembered, by name; empty where nothing is."""
        return self.learners.state_dict()

    def restore_(self, content: Mapping[str, Tensor]) -> None:
        """Go on from what `content` returned."""
        self.learners.load_state_dict(dict(content))


def teaching(
    loss: Soft,
    teachers: Sequence[nn.Module],
    label_smoothing: float = 0.0,
    target: Target = CLASSES,
    device: str = CPU,
    mean: Mean | None = None,
) -> Teaching:
    """Return the loss for which copies of the teachers answer on a device.

    Raises:
        DecantError: A teacher's weights hold NaN or infinity; or the device is not there, or has no room for
            them.
    """
    for each in teachers:
        check_finite(each)
    with computing_on(place := find(device), ("the teacher that answers each batch", CPU)):
        copies = [place_(copy.deepcopy(each).eval(), place) for each in teachers]
    return Teaching(loss, copies, label_smoothing, target, mean=mean or Mean())


def of_loss(loss: Callable[..., Tensor]) -> Teaching | None:
    """Return a loss that is one on a teacher's answers, also where something is added to it; else None."""
    inner = loss.loss if isinstance(loss, Added) else loss
    return inner if isinstance(inner, Teaching) else None


@contextmanager
def listening(
    loss: Callable[..., Tensor], module: nn.Module, train: Examples, seed: int, spread: Spread | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Let a loss listen at a student's layers; yield the groups of parameters that are trained beside it."""
    if (found := of_loss(loss)) is None:
        yield []
        return
    found.spread = spread or Spread()
    with found.listening(module, train, seed) as parameters:
        yield [{"params": parameters, "weight_decay": 0.0}] if parameters else []


@dataclass
class Added:
    """A loss and a term of a student's own parameters.

    Attributes:
        loss: Over (inputs, outputs, labels).
        term: What is added in each step; shape [].
    """

    loss: Callable[..., Tensor]
    term: Callable[[], Tensor]

    def __call__(self, inputs: tuple[Tensor, ...], outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the sum of both; shape []."""
        return self.loss(inputs, outputs, labels) + self.term()


def check_finite(teacher: nn.Module) -> None:
    """Refuse a teacher of which a weight or buffer is no number.

    Raises:
        DecantError: One holds NaN, or a weight infinity; names it.
    """
    for name, tensor in teacher.state_dict().items():
        if (
            isinstance(tensor, Tensor)
            and tensor.is_floating_point()
            and (wrong := not_a_number(teacher, name, tensor))
        ):
            raise DecantError(
                f"The teacher's {name} holds {wrong}, so nothing can be learned from it; train it again"
            )


def check_examples(teacher: Checkpoint, examples: Examples) -> None:
    """Refuse examples that a teacher does not take, or that have other classes than it.

    Raises:
        DecantError: They have another shape, or another number of classes.
    """
    if (
        isinstance(teacher.shape, tuple)
        and isinstance(examples.shape, tuple)
        and teacher.shape != examples.shape
    ):
        raise DecantError(
            f"The teacher takes pictures of {' x '.join(map(str, teacher.shape))}, and these examples are "
            f"{' x '.join(map(str, examples.shape))}; take a teacher of this data"
        )
    if teacher.classes and examples.classes and len(teacher.classes) != len(examples.classes):
        raise DecantError(
            f"The teacher tells {len(teacher.classes)} classes apart, and these examples have "
            f"{len(examples.classes)}; take a teacher of this data"
        )


def layer_at(module: nn.Module, path: str, who: str) -> nn.Module:
    """Return the layer at a module path.

    Raises:
        DecantError: There is none; names the nearest.
    """
    layers = {name: layer for name, layer in module.named_modules() if name}
    if path not in layers:
        raise DecantError(f"loss.layers: {unknown_layer(path, layers, who)}")
    return layers[path]


def incomparable(part: Features, student: Sequence[int], teacher: Sequence[int]) -> str:
    """Return why features of two shapes cannot be compared so; empty where they can."""
    shapes = f"the student's has {[*student[1:]]} and the teacher's {[*teacher[1:]]} for each example"
    if min(len(student), len(teacher)) < (3 if part.places else 2):
        return f"{part.kind} needs features with places; {shapes}"
    if not part.aligned:
        return ""
    own, other = _places(student), _places(teacher)
    if len(student) != len(teacher) or (len(student) == 3 and own != other):
        return f"{part.kind} compares place by place; {shapes}"
    if any(few > many or many % few for few, many in zip(own, other, strict=True)):
        return f"places of the teacher are averaged to fewer, by a whole number; {shapes}"
    return ""


def _places(shape: Sequence[int]) -> Sequence[int]:
    """Return the places of features [N, C, ...], or [N, T, C]."""
    return shape[1:-1] if len(shape) == 3 else shape[2:]


def _link(part: Features, student: Tensor, teacher: Tensor, learner: nn.Module) -> Link:
    teacher = _aligned(teacher, student) if part.aligned else teacher
    return Link(student.float(), teacher.float(), None if isinstance(learner, nn.Identity) else learner)


def _aligned(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the teacher's maps [N, C, ...] averaged to the student's places; others as they are."""
    pools: dict[int, Callable[..., Tensor]] = {4: F.avg_pool2d, 5: F.avg_pool3d}
    if teacher.dim() not in pools or teacher.shape[2:] == student.shape[2:]:
        return teacher
    return pools[teacher.dim()](
        teacher, [a // b for a, b in zip(teacher.shape[2:], student.shape[2:], strict=True)]
    )


def _recorder(seen: Seen, path: str) -> Callable[[nn.Module, Any, Any], None]:
    def record(_: nn.Module, __: Any, outputs: Any) -> None:
        for tensor in tensors_of(outputs):
            seen[path] = tensor
            return

    return record


def _given(seen: Seen, path: str) -> Tensor:
    """Return what a layer gave.

    Raises:
        DecantError: It was not called, or gave no tensor.
    """
    if path not in seen:
        raise DecantError(
            f"loss.layers: {path} gives no tensor, or the network does not call it; take another"
        )
    return seen[path]
