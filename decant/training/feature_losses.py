"""Losses on what layers of student and teacher give: each is one class, with its formula and its paper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from decant.errors import DecantError, Message
from decant.lazy import torch
from decant.schema import Count, NotNegative, Positive, did_you_mean
from decant.training.ramps import FractionOrRamp
from decant.training.soft import Answers, Link, Soft

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

Path = Annotated[str, Field(min_length=1, max_length=200)]
Layers = Annotated[dict[Path, Path], Field(max_length=64)]
"""Layers of the student, by module path, and the layer of the teacher that each is compared with."""

SomeLayers = Annotated[Layers, Field(min_length=1)]

NEAR = 3
"""How many layers of a name like an unknown one are named."""


def unknown_layer(path: str, layers: Iterable[str], who: str) -> Message:
    """Return that a network has no layer at a path, and the near ones."""
    return f"the {who} has no layer {path!r}{did_you_mean(path, layers, NEAR)}"


class Features(Soft):
    """What losses on features have: the mean over pairs of layers, times `factor`.

    Attributes:
        layers: The student's layer by module path, and the teacher's.
        factor: What the mean is multiplied by, as in the paper's experiments, so that it has a size beside
            the labels' loss.
        places: Whether features have to be maps or sequences, with places.
        aligned: Whether the features' places are compared one by one, so that there have to be as many.
    """

    if TYPE_CHECKING:
        layers: dict[str, str]
        factor: float
    places: ClassVar[bool] = False
    aligned: ClassVar[bool] = False

    def soft(self, answers: Answers) -> Tensor:
        """Return `factor` times the mean over pairs of layers, of outputs where none are named; shape []."""
        named = answers.links[0] if answers.links else ()
        links = named or (Link(answers.student, answers.teacher.detach()),)
        return self.factor * torch.stack([self.between(link, answers) for link in links]).mean()

    def between(self, link: Link, answers: Answers) -> Tensor:
        """Return how far features of the student are from those of the teacher; shape []."""
        raise NotImplementedError

    def learner(self, student: Size, teacher: Size, count: int) -> nn.Module | None:
        """Return what is trained or remembered for a pair of layers; drawn by the global generator.

        Args:
            student: Shape of the student's features, [N, ...].
            teacher: Shape of the teacher's, once its places are averaged to the student's.
            count: How many training examples there are.
        """
        return None


class Hints(Features):
    """Features of a layer are those of the teacher's layer: the mean squared error.

    Where widths differ, a linear map of the student's channels is trained beside it (a 1 x 1 convolution of
    maps), and thrown away with the training. The paper takes a layer in the middle. Does not help at the last
    one, of which the student then spends what it has on a copy; nor where the student's layer is much earlier
    than the teacher's, or far too narrow.

    References:
        Romero et al., FitNets: Hints for Thin Deep Nets, 2014. https://arxiv.org/abs/1412.6550
    """

    kind: Literal["hints"] = "hints"
    layers: SomeLayers
    factor: Positive = 10.0
    hard: FractionOrRamp = 0.5
    aligned: ClassVar[bool] = True

    def learner(self, student: Size, teacher: Size, count: int) -> nn.Module | None:
        """Return the map of channels; None where both have as many."""
        from decant.training.learners import Adapter, channels

        return None if channels(student) == channels(teacher) else Adapter(student, teacher)

    def between(self, link: Link, answers: Answers) -> Tensor:
        """Return the mean over all numbers of their squared difference; shape []."""
        found = link.student if link.learner is None else link.learner(link.student)
        return (found - link.teacher).square().mean()


class Attention(Features):
    """Where a layer is active, whatever its width: maps of the sum of squares over channels.

    Each map is scaled to length 1 over its places; the loss is the mean over images and places of the squared
    difference. Does not help at layers of few places, such as a last stage: take an early one; nor where
    fully connected layers do the work.

    References:
        Zagoruyko and Komodakis, Paying More Attention to Attention, 2016. https://arxiv.org/abs/1612.03928
    """

    kind: Literal["attention"] = "attention"
    layers: SomeLayers
    factor: Positive = 1000.0
    hard: FractionOrRamp = 0.5
    places: ClassVar[bool] = True
    aligned: ClassVar[bool] = True

    def between(self, link: Link, answers: Answers) -> Tensor:
        """Return the mean squared difference of both maps; shape []."""
        return (attention(link.student) - attention(link.teacher)).square().mean()


def attention(features: Tensor) -> Tensor:
    """Return where features [N, C, ...], or [N, T, C], are active: [N, P] of length 1, over all P places."""
    squares = features.square().mean(-1 if features.dim() == 3 else 1)
    return torch.nn.functional.normalize(squares.flatten(1))


class Relational(Features):
    """How images of a batch lie to one another: distances of pairs, and angles of triples.

    Distances are over their mean, so that nothing depends on the features' size or width; both are compared
    by the smooth L1 loss, mean over all pairs and triples, those of an image with itself too. Without
    `layers` it compares outputs. Does not help in very small batches; takes time and memory of the batch's
    third power unless `angle` is 0.

    Attributes:
        distance: Weight of distances.
        angle: Weight of angles.

    References:
        Park et al., Relational Knowledge Distillation, 2019. https://arxiv.org/abs/1904.05068
    """

    kind: Literal["relational"] = "relational"
    layers: Layers = Field(default={})
    distance: NotNegative = 25.0
    angle: NotNegative = 50.0
    factor: Positive = 1.0
    hard: FractionOrRamp = 0.5

    def between(self, link: Link, answers: Answers) -> Tensor:
        """Return both with their weights; shape []."""
        student, teacher = link.student.flatten(1), link.teacher.flatten(1)
        huber, total = torch.nn.functional.smooth_l1_loss, student.new_zeros(())
        if self.distance:
            total = total + self.distance * huber(distances(student), distances(teacher))
        if self.angle:
            total = total + self.angle * huber(angles(student), angles(teacher))
        return total


SMALLEST_SQUARE = 1e-12
"""Of a distance: nearer images are as one, and no gradient pulls at them."""


def distances(rows: Tensor) -> Tensor:
    """Return Euclidean distances [N, N] of rows [N, K], over the mean of those that are not zero."""
    squares = rows.square().sum(1)
    squares = squares[:, None] + squares - 2 * rows @ rows.T
    apart = (squares > SMALLEST_SQUARE) & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    found = torch.where(apart, squares, 1.0).sqrt() * apart
    return found / (found.sum() / apart.sum().clamp(min=1)).clamp(min=SMALLEST_SQUARE)


def angles(rows: Tensor) -> Tensor:
    """Return the cosines [N, N, N] of the angles at row i between the ways from it to rows j and k."""
    ways = torch.nn.functional.normalize(rows - rows[:, None], dim=2)
    return ways @ ways.transpose(1, 2)


class Similarity(Features):
    """Which images of a batch a layer answers alike: G = F F', each row to length 1, |G - G'|^2 / N^2.

    Without `layers` it compares outputs. Does not help in small batches, which have few pairs.

    References:
        Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019. https://arxiv.org/abs/1907.09682
    """

    kind: Literal["similarity"] = "similarity"
    layers: Layers = Field(default={})
    factor: Positive = 3000.0
    hard: FractionOrRamp = 0.5

    def between(self, link: Link, answers: Answers) -> Tensor:
        """Return the mean over all pairs of images of the squared difference; shape []."""
        return (similarities(link.student) - similarities(link.teacher)).square().mean()


def similarities(features: Tensor) -> Tensor:
    """Return the products [N, N] of the features of each two images, each row to length 1."""
    rows = features.flatten(1)
    return torch.nn.functional.normalize(rows @ rows.T)


class Contrastive(Features):
    """The student's features of an image are told from those of others by the teacher's, and the other way.

    Both are mapped to `width` numbers of length 1 by linear maps that are trained beside. The critic is
    h(t, s) = e / (e + m z), where e = exp(t's / temperature), m is `negatives` and z the mean of e over the
    first batch and its negatives, which stays: with it the critic begins at 1 / (1 + m), which is right by
    chance, whatever the temperature. (The paper writes 1 / M, over M examples, and normalizes e by M z in its
    experiments.) The loss is - log h of the image's own pair - sum over the others of log(1 - h), mean over
    images, of the student against a memory of the teacher's features and of the teacher against one of the
    student's. Others are any other examples, drawn anew in each step from the recipe's seed. Does not help in
    a short training, in which most of a memory is never written; takes a memory of 2 * width * M numbers.

    Attributes:
        negatives: Other examples for each image of a batch.
        momentum: The share of a memory's old entry when its image comes again.

    References:
        Tian et al., Contrastive Representation Distillation, 2019. https://arxiv.org/abs/1910.10699
        Gutmann and Hyvarinen, Noise-Contrastive Estimation, 2010, for the normalization, which is estimated
        and held as in Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
        2018, section 3.2. https://arxiv.org/abs/1805.01978
    """

    kind: Literal["contrastive"] = "contrastive"
    layers: SomeLayers
    factor: Positive = 0.8
    width: Annotated[int, Field(gt=0, le=4096)] = 64
    negatives: Count = 1024
    temperature: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    hard: FractionOrRamp = 0.5

    def learner(self, student: Size, teacher: Size, count: int) -> nn.Module | None:
        """Return both maps and both memories.

        Raises:
            DecantError: There is one training example, which has no others.
        """
        from decant.training.learners import Contrast

        if count < 2:
            raise DecantError("loss.kind: contrastive needs other examples, and there is one; take hints")
        return Contrast(student, teacher, count, width=self.width, momentum=self.momentum)

    def between(self, link: Link, answers: Answers) -> Tensor:
        """Return the loss in both directions, and write the memories; shape []."""
        from decant.training.learners import Contrast

        assert isinstance(link.learner, Contrast) and answers.rows is not None
        return link.learner(
            link.student,
            link.teacher,
            answers.rows,
            negatives=self.negatives,
            temperature=self.temperature,
            generator=answers.generator,
        )
