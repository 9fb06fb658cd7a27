"""How important each weight is: each criterion is one class, and the union names them for params.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.lazy import torch
from decant.networks.devices import CPU, device_of, fed, moved
from decant.networks.execution import answers, predict
from decant.networks.faults import told_of_gradients
from decant.networks.structure import compressible, normalized_by, observable, tables, unobservable
from decant.schema import Count, Positive, Section, TrainImages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decant.checkpoints.checkpoint import Checkpoint
    from decant.compression.channel_scores import ChannelScores
    from decant.compression.coupling import ChannelGroup

Scores: TypeAlias = "dict[str, Tensor]"
"""Importance of each weight, by name, in the weight's shape; what scores least is removed first."""

SENSED = 1000
"""Images on which it is seen what outputs count: each takes a backward pass for every class."""

LEAST_COST = 1e-30
"""What the errors of outputs count that none of these images depends on; a removed weight stays below."""


@dataclass(frozen=True)
class Asked:
    """What is known of the weights to be scored.

    Attributes:
        masks: True where a weight survives, by the names of those that have masks.
        names: The weights whose scores are asked for: others need none; all where None.
    """

    masks: Mapping[str, Tensor] = field(default_factory=dict)
    names: Sequence[str] | None = None


EVERY = Asked()


class Scoring(Section):
    """What all criteria have.

    Attributes:
        fresh: It scores the network as it was before training, and masks hold from there on.
        accumulates: It scores by what happens during a training, so only a schedule that trains has scores.
        repairs: Surviving weights are changed to make up for those removed.
        runs: The network runs on examples; it may do so on a device.
        structures: The only structures that it can score; empty where all.
    """

    fresh: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False
    repairs: ClassVar[bool] = False
    runs: ClassVar[bool] = False
    structures: ClassVar[tuple[str, ...]] = ()

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return the score of each weight, finite and without gradient; the module is untouched.

        They are computed where the module lies.

        Args:
            module: The network, in eval mode.
            examples: Training images.
            seed: For what is drawn.
            asked: Which scores are needed: more of them are allowed.
        """
        raise NotImplementedError

    def unscored(self, module: nn.Module) -> dict[str, str]:
        """Return why it has no scores for a weight, by its name: by default for embeddings alone."""
        return dict.fromkeys(tables(module), "embeddings are scored by magnitude or random alone")


class OfInputs(Scoring):
    """What criteria have that look at the inputs of layers."""

    runs: ClassVar[bool] = True

    def unscored(self, module: nn.Module) -> dict[str, str]:
        """Return the weights whose inputs cannot be seen, and why."""
        return super().unscored(module) | unobservable(module)


class Magnitude(Scoring):
    """Score |w|: a small weight moves its layer's output little.

    Weights that go together, as in channels, score by the sum of |w| (`norm: 1`) or of w^2 (`norm: 2`). With
    `folded`, the weights are those of the network with its batch norms multiplied in, which is what
    reaches the next layer. Does not help across layers of different scale unless folded: use the allocation
    `layer` or `lamp` there. It does not look at the data.

    References:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015.
        https://arxiv.org/abs/1506.02626
        Li et al., Pruning Filters for Efficient ConvNets, 2016. https://arxiv.org/abs/1608.08710
    """

    kind: Literal["magnitude"] = "magnitude"
    norm: Literal[1, 2] = 1
    folded: bool = False

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return |w| per weight, or its square."""
        scales = normalized_by(module) if self.folded else {}
        return {
            name: (weight.detach() * scales.get(name, 1.0)).abs() ** self.norm
            for name, weight in (compressible(module) | tables(module)).items()
        }

    def unscored(self, module: nn.Module) -> dict[str, str]:
        """Return none: it looks at nothing but weights."""
        return {}


class Random(Scoring):
    """Score by chance: the control that any other criterion has to beat.

    References:
        Blalock et al., What is the State of Neural Network Pruning?, 2020. https://arxiv.org/abs/2003.03033
    """

    kind: Literal["random"] = "random"

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return a uniform draw in [0, 1) per weight, a function of the seed."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(weight.shape, generator=generator)
            for name, weight in (compressible(module) | tables(module)).items()
        }

    def unscored(self, module: nn.Module) -> dict[str, str]:
        """Return none: it looks at nothing but weights."""
        return {}


class Taylor(Scoring):
    """Score |w * dL/dw|, the first-order change of the loss when w is set to zero.

    The gradient is of the mean cross entropy over the first `images` training images, in eval mode. Does not
    help on a network whose loss is near its minimum on these images: the gradient is noise there. So it is
    refused without labels: the distance of outputs from what they are is at its minimum.

    References:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2016.
        https://arxiv.org/abs/1611.06440
    """

    runs: ClassVar[bool] = True
    kind: Literal["taylor"] = "taylor"
    images: TrainImages = 2000

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return |w * g| per weight.

        Raises:
            DecantError: There are no labels.
        """
        seen, weights = _seen(self.kind, examples, self.images), _named(module, asked.names)
        if seen.labels is None:
            raise DecantError(
                f"criterion {self.kind} scores weights by the gradient of a loss on labels, and these "
                "examples have none (what the network answers itself has no gradient); take fisher, wanda, "
                "obs or magnitude"
            )
        gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        with _differentiable(weights):
            for inputs, labels in _batches(seen, 250, device_of(module)):
                logits = answers(module, inputs)
                loss = seen.target.loss(logits, labels, reduction="sum") / len(seen)
                for name, part in _gradients(self.kind, loss, weights).items():
                    gradients[name] += part
        return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}


class Snip(Taylor):
    """Connection sensitivity: |w * dL/dw| of the fresh network, before it has learned anything.

    The fresh weights are drawn again from the seed in the model's lineage. Meant to go with
    `schedule: {kind: rewind, epoch: 0}`, which then trains what survives from there. Does not help a trained
    network that keeps its weights: they are not those that were scored.

    References:
        Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018.
        https://arxiv.org/abs/1810.02340
    """

    fresh: ClassVar[bool] = True
    kind: Literal["snip"] = "snip"  # type: ignore[assignment]


class Fisher(Scoring):
    """Score w^2 * E[(dL/dw)^2] / 2: the second-order change of the loss, with the Fisher diagonal as Hessian.

    The square is of each image's own gradient, at its label, averaged over the first `images` training
    images. Without labels the outputs are taken for the means of normal distributions that are as wide as the
    outputs vary, and the gradient is at a draw from these: at signs by chance, whose expected square is the
    same. Does not help where weights depend on each other: the diagonal cannot see it; `obs` does.

    References:
        Theis et al., Faster Gaze Prediction with Dense Networks and Fisher Pruning, 2018.
        https://arxiv.org/abs/1801.05787
    """

    runs: ClassVar[bool] = True
    kind: Literal["fisher"] = "fisher"
    images: TrainImages = 1000

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return w^2 F / 2 per weight."""
        seen, weights = _seen(self.kind, examples, self.images), _named(module, asked.names)
        squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        # One by one: it is no slower than torch's vmap, which stops at what rounds by the range of a batch.
        with _differentiable(weights):
            for loss in self._losses(module, seen, seed):
                for name, gradient in _gradients(self.kind, loss, weights).items():
                    squares[name] += gradient.square()
        return {n: weight.detach().square() * squares[n] / (2 * len(seen)) for n, weight in weights.items()}

    def _losses(self, module: nn.Module, seen: Examples, seed: int) -> Iterator[Tensor]:
        """Yield the loss of each image, shape []."""
        place = device_of(module)
        if seen.labels is not None:
            for inputs, labels in _batches(seen, 1, place):
                yield seen.target.loss(answers(module, inputs), labels)
            return
        deviation = max(predict(fed(module, place), seen.images).std(correction=0).item(), 1e-12)
        generator = torch.Generator().manual_seed(seed)
        for inputs in seen.images.split(1):
            outputs = answers(module, moved(inputs, place))
            signs = torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1
            yield (outputs * moved(signs, place)).sum() / deviation


class Wanda(OfInputs):
    """Score |w| * ||x||, the size of a weight times that of the inputs that it meets.

    The norm of an input is over the first `images` training images, no labels needed. The paper compares
    weights within each row alone; here the allocation says who competes. Does not help where inputs have
    much the same size, as behind batch norms: it is then the magnitude.

    References:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023.
        https://arxiv.org/abs/2306.11695
    """

    kind: Literal["wanda"] = "wanda"
    images: TrainImages = 1000

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return |w| * ||x|| per weight whose inputs can be seen."""
        from decant.reconstruction.hessians import norms

        seen = _seen(self.kind, examples, self.images)
        sizes, weights = norms(module, seen.images, asked.names), observable(module)
        return {
            name: (weights[name].detach().flatten(1).abs() * size).reshape(weights[name].shape)
            for name, size in sizes.items()
        }


class Movement(Scoring):
    """Score -sum of w * dL/dw over the steps of a training: how far a weight moved away from zero.

    Needs a schedule that trains, and there weights may come back. Helps where a model is fine-tuned on
    another task than it was trained on. Does not help on the same task, where large weights stay large.

    References:
        Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020.
        https://arxiv.org/abs/2005.07683
    """

    accumulates: ClassVar[bool] = True
    kind: Literal["movement"] = "movement"

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Refuse: a network that stands still does not move.

        Raises:
            DecantError: Always; the recipe is refused before it comes to this.
        """
        raise DecantError("movement scores weights while they are trained; give a schedule such as gradual")


ErrorCosts = Annotated[Literal["outputs", "logits"], Field(exclude_if=lambda costs: costs == "outputs")]
"""By what errors of outputs compete: as they are, or by what they cost the answers."""


class Obs(OfInputs):
    """Optimal Brain Surgeon on each layer: w^2 / [H^-1], and survivors that make up for what is removed.

    H is the second moment of the layer's inputs over the first `images` training images, without labels.
    Layers are done one after another on what the pruned ones before send them, towards the outputs of the
    unpruned network, in `rounds` of removal and least squares; in layers too large for exact ones, all rows
    share one inverse while weights are chosen. Helps most without fine-tuning and at high sparsity. Does not
    help where a long fine-tuning follows, which would have found the same weights.

    With `costs: logits` weights of all rows and layers compete by what their errors cost the answers, not by
    the errors: each is multiplied by the diagonal of the answers' Gauss-Newton matrix at its output. Helps
    where weights go in several rounds. Does not help at once at high sparsity: errors are no longer small.

    References:
        Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, 1992.
        Frantar and Alistarh, Optimal Brain Compression, 2022. https://arxiv.org/abs/2208.11580
        Frantar and Alistarh, SparseGPT, 2023. https://arxiv.org/abs/2301.00774
    """

    repairs: ClassVar[bool] = True
    structures: ClassVar[tuple[str, ...]] = ("weights", "blocks", "n-of-m")
    kind: Literal["obs"] = "obs"
    images: TrainImages = 2000
    damping: Positive = 0.01
    rounds: Count = 16
    costs: ErrorCosts = "outputs"

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Return w^2 / [H^-1] per weight: the rise of its layer's mean squared output error.

        H is of the survivors alone; what does not survive scores 0.
        """
        from decant.reconstruction.obs import saliencies

        seen = _seen(self.kind, examples, self.images)
        found = saliencies(module, seen.images, self.damping, asked.masks, asked.names)
        rows = self.row_costs(module, list(found), examples)
        every = {
            n: moved(rows[n], each.device).reshape(-1, *[1] * (each.dim() - 1)) for n, each in found.items()
        }
        return {n: each * every[n] for n, each in found.items()}

    def row_costs(self, module: nn.Module, names: Sequence[str], examples: Examples) -> dict[str, Tensor]:
        """Return by what the errors of each output of the weights' layers are multiplied, float32 [O]."""
        if self.costs == "outputs":
            return {name: torch.ones(len(module.get_parameter(name))) for name in names}
        return _costs_in_answers(module, names, examples, _seen(self.kind, examples, self.images).images)


class OfChannels(Scoring):
    """What criteria have that score channels as a whole, and no weight by itself."""

    runs: ClassVar[bool] = True
    structures: ClassVar[tuple[str, ...]] = ("channels",)

    def scores(self, module: nn.Module, examples: Examples, seed: int, asked: Asked = EVERY) -> Scores:
        """Refuse: channels alone have scores.

        Raises:
            DecantError: Always; the recipe is refused before it comes to this.
        """
        raise DecantError(f"criterion {self.model_dump()['kind']} scores channels: take structure channels")

    def channel_scores(
        self, parent: Checkpoint, groups: Sequence[ChannelGroup], examples: Examples, device: str = CPU
    ) -> ChannelScores:
        """Return the score of each channel, computed on a device; the parent is untouched."""
        raise NotImplementedError


class Reconstruction(OfChannels):
    """Score a channel by what the layers that read it lose when it goes and they are solved anew.

    Channels go one by one; the survivors' weights become the least squares solution on the layers' inputs
    over the first `images` training images, towards the outputs of the whole network, within the masks,
    ranges and levels that they have already. No labels. Does not
    help where what follows forgives some outputs and not others, or where a long fine-tuning follows.

    With `costs: logits` channels of all layers compete by what the errors cost the answers, each multiplied
    by the diagonal of the answers' Gauss-Newton matrix at its output; else by the shares of their layers'
    outputs. Helps where `logits` follows. Does not help where nothing follows: errors are no longer small.

    References:
        Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, 2017.
        https://arxiv.org/abs/1707.06342
    """

    repairs: ClassVar[bool] = True
    kind: Literal["reconstruction"] = "reconstruction"
    images: TrainImages = 2000
    damping: Positive = 0.01
    costs: ErrorCosts = "outputs"

    def channel_scores(
        self, parent: Checkpoint, groups: Sequence[ChannelGroup], examples: Examples, device: str = CPU
    ) -> ChannelScores:
        """Return the error of the layers that read each channel, as shares of their outputs' squares.

        With `costs: logits` it is what the error costs the answers, in nats of classes.
        """
        from decant.compression.channel_scores import by_reconstruction

        images = _seen(self.kind, examples, self.images).images
        masks = {name: held.mask for name, held in parent.constraints.items() if held.mask is not None}
        sensed = partial(_costs_in_answers, examples=examples, images=images)
        costs = sensed if self.costs == "logits" else None
        return by_reconstruction(parent.module, groups, images, self.damping, masks, device, costs)


class Drift(OfChannels):
    """Score a channel by how far the outputs move without it: measured, one pass over the images for each.

    The distance, on the first `images` training images, is KL(whole || without it) of logits of classes, else
    the squared error over the outputs' variance. No labels. Does not help
    where channels stand in for one another: each alone can be spared, both cannot.

    References:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2016,
        section 2.2 (the oracle, by the loss). https://arxiv.org/abs/1611.06440
    """

    kind: Literal["drift"] = "drift"
    images: TrainImages = 500

    def channel_scores(
        self, parent: Checkpoint, groups: Sequence[ChannelGroup], examples: Examples, device: str = CPU
    ) -> ChannelScores:
        """Return the distance without each channel, of classes in nats."""
        from decant.compression.channel_scores import by_drift
        from decant.costs.divergence import distance

        images = _seen(self.kind, examples, self.images).images
        return by_drift(parent.module, groups, images, distance(parent.classes), device)


Criterion = Annotated[
    Magnitude | Random | Taylor | Snip | Fisher | Wanda | Movement | Obs | Reconstruction | Drift,
    Field(discriminator="kind"),
]


def _costs_in_answers(
    module: nn.Module, names: Sequence[str], examples: Examples, images: Batch
) -> dict[str, Tensor]:
    """Return what the squared error of each output of some layers costs the answers, float32 [O], above 0."""
    from decant.reconstruction.logits import sensitivities

    found = sensitivities(module, names, images[:SENSED], 1.0 if examples.classes else None)
    return {name: rows.float().clamp(min=LEAST_COST) for name, rows in found.items()}


def _named(module: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the named weights; all where None."""
    weights = compressible(module)
    return weights if names is None else {name: weights[name] for name in names}


@contextmanager
def _differentiable(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let gradients be taken of weights that their network keeps from training, too."""
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _gradients(kind: str, loss: Tensor, weights: Scores) -> Scores:
    """Return the gradient of a loss with respect to each weight.

    Raises:
        DecantError: The network does not run a layer, so that the loss says nothing of its weight.
    """
    with told_of_gradients():
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    if missing := [name for name, gradient in zip(weights, found, strict=True) if gradient is None]:
        raise DecantError(
            f"criterion {kind} scores weights by gradients, and the loss depends on none of "
            f"{', '.join(missing)}: the network does not run these layers; take criterion magnitude"
        )
    return dict(zip(weights, found, strict=True))


def _seen(kind: str, examples: Examples, count: int) -> Examples:
    """Return the first `count` examples, or all where there are fewer.

    Raises:
        DecantError: There are none.
    """
    if not len(examples):
        raise DecantError(f"criterion {kind} scores weights by training images and got none")
    return examples.at_most(count)


def _batches(examples: Examples, size: int, device: torch.device) -> Iterator[tuple[Batch, Tensor]]:
    """Yield inputs and labels [B] on a device."""
    pairs = zip(examples.images.split(size), examples.known_labels.split(size), strict=True)
    return (moved(pair, device) for pair in pairs)
