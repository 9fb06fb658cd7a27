"""How a network learns to live with its levels: each way is one class, and the union names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from decant.quantize.schemes import Binary, Codebook, Integer, Scheme, Ternary
from decant.schema import NotNegative, Positive, Section
from decant.training.losses import SoftTargets
from decant.training.recipe import Training

if TYPE_CHECKING:
    from torch import Tensor

    from decant.checkpoints.activations import InputGrid
    from decant.checkpoints.constraints import Constraints
    from decant.quantize.qat.learners import InputLearner, WeightLearner


class Trainer(Section):
    """What all ways share: the recipe, and the default for a layer that they do not treat specially.

    Attributes:
        training: Recipe of the training, which begins from the float weights. Weight decay pulls the free
            weights behind signs to zero, where signs flip for nothing: 0 suits one and two bits.
        loss: Soft targets of the teacher; None for the labels.
        schemes: Kinds of schemes whose weights it trains.
        needs_activations: Whether it is of no use where inputs are not rounded.
    """

    kind: str
    training: Training
    loss: SoftTargets | None = None
    schemes: ClassVar[tuple[str, ...]]
    needs_activations: ClassVar[bool] = False

    def weights(self, scheme: Scheme, weight: Tensor, held: Constraints, axis: int) -> WeightLearner:
        """Return what rounds a weight while it is trained: here the scheme, straight through.

        The scales of signs, also of ternary ones, follow the free weight; other levels stay.

        Args:
            scheme: Of this weight; the first and the last layer may have another than the rest.
            weight: As it is before the training.
            held: Its range and mask.
            axis: Of its output channels.

        Raises:
            ValueError: The scheme finds no levels for the weight.
        """
        from decant.quantize.qat.learners import Straight

        return Straight(scheme, weight, held, axis, follows=isinstance(scheme, Binary | Ternary))

    def inputs(self, grid: InputGrid) -> InputLearner | None:
        """Return what rounds a layer's inputs while it is trained; None where the grid stays."""
        return None


class Ste(Trainer):
    """Gradients go straight through the rounding, as if it were not there; grids of inputs stay.

    Works with every scheme, and is all that 8 bits need. Does not help where levels were calibrated badly,
    as they stay where they are: below 4 bits learn them.

    References:
        Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation, 2013. https://arxiv.org/abs/1308.3432
        Rastegari et al., XNOR-Net, 2016, section 3, for binary; Li et al., Ternary Weight Networks, 2016, for
        ternary. https://arxiv.org/abs/1603.05279, https://arxiv.org/abs/1605.04711
    """

    kind: Literal["ste"] = "ste"
    schemes: ClassVar[tuple[str, ...]] = ("integer", "ternary", "binary", "codebook", "power-of-two")


class Lsq(Trainer):
    """The steps of weights and of static grids of inputs are learned, from where calibration put them.

    Zero points stay. The paper begins at 2 mean |w| / sqrt(Q), which ignores the scheme's range; here that is
    kept, and `mse` is the range to begin from: a step that `min-max` made too coarse for 2 bits does not
    recover in a short training. Helps inputs of few bits. Does not help weights where `gptq`, at 2 bits with
    `search`, may lose less without a training; and at 8 bits there is nothing to gain.

    References:
        Esser et al., Learned Step Size Quantization, 2019. https://arxiv.org/abs/1902.08153
    """

    kind: Literal["lsq"] = "lsq"
    schemes: ClassVar[tuple[str, ...]] = ("integer",)

    def weights(self, scheme: Scheme, weight: Tensor, held: Constraints, axis: int) -> WeightLearner:
        """Return steps that are learned, where the levels are integers."""
        from decant.quantize.qat.learners import Steps

        if isinstance(scheme, Integer):
            return Steps(scheme.levels(weight, held.mask, axis), held, weight.shape)
        return super().weights(scheme, weight, held, axis)

    def inputs(self, grid: InputGrid) -> InputLearner | None:
        """Return a step that is learned."""
        from decant.quantize.qat.learners import InputStep

        return InputStep(grid)


class Pact(Trainer):
    """Where one-sided inputs are cut is learned, pulled towards zero by an L2 term; weights as in `ste`.

    Two-sided inputs, as the first layer has, keep their grid. Does not help at 8 bits of inputs; `lsq` learns
    the same number from what is rounded too, not only from what is cut off.

    Attributes:
        decay: Of the clips alone: half of it times the sum of their squares is added to the loss.

    References:
        Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018.
        https://arxiv.org/abs/1805.06085
    """

    kind: Literal["pact"] = "pact"
    decay: NotNegative = 0.0005
    schemes: ClassVar[tuple[str, ...]] = Ste.schemes
    needs_activations: ClassVar[bool] = True

    def inputs(self, grid: InputGrid) -> InputLearner | None:
        """Return a clip that is learned, where there is nothing below zero."""
        from decant.quantize.qat.learners import InputClip

        return InputClip(grid) if grid.zero_point == 0 else None


class Ttq(Trainer):
    """Trained ternary: a learned scale for the positive and one for the negative level of each layer.

    Weights within `threshold` times the layer's largest are zero. The scheme's own threshold and scales play
    no part. The free weight's gradient is multiplied by scales of some hundredths, so that plain gradient
    descent hardly moves it: take Adam. Two scales per layer, where the scheme alone has one per channel: does
    not help layers whose channels differ much in size.

    Attributes:
        threshold: Share of the largest |w|.

    References:
        Zhu et al., Trained Ternary Quantization, 2016. https://arxiv.org/abs/1612.01064
    """

    kind: Literal["ttq"] = "ttq"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.05
    schemes: ClassVar[tuple[str, ...]] = ("ternary",)

    def weights(self, scheme: Scheme, weight: Tensor, held: Constraints, axis: int) -> WeightLearner:
        """Return two scales that are learned, where the levels are ternary."""
        from decant.quantize.qat.learners import TwoScales

        if isinstance(scheme, Ternary):
            return TwoScales(self.threshold, weight, held)
        return super().weights(scheme, weight, held, axis)


class ErrorDecay(Trainer):
    """Signs whose gradient goes from the straight one to that of the sign while the network is trained.

    The paper's weights are balanced too: that is the scheme's `balanced`. Grids of inputs stay. In a training
    of a few epochs from a good float network it does not help much over `ste`: the signs are then mostly
    those of the start.

    Attributes:
        first: Steepness t at the beginning, below 1 for a wide gradient.
        last: At the end.

    References:
        Qin et al., Forward and Backward Information Retention for Accurate Binary Neural Networks, 2020.
        https://arxiv.org/abs/1909.10788
    """

    kind: Literal["error-decay"] = "error-decay"
    first: Positive = 0.1
    last: Positive = 10.0
    schemes: ClassVar[tuple[str, ...]] = ("binary",)

    @model_validator(mode="after")
    def _ordered(self) -> ErrorDecay:
        if self.first > self.last:
            raise ValueError(f"first {self.first} is above last {self.last}; the gradient only narrows")
        return self

    def weights(self, scheme: Scheme, weight: Tensor, held: Constraints, axis: int) -> WeightLearner:
        """Return signs with the gradient that narrows, where the levels are signs."""
        from decant.quantize.qat.learners import Decaying

        if isinstance(scheme, Binary):
            return Decaying(scheme, held, axis, first=self.first, last=self.last)
        return super().weights(scheme, weight, held, axis)


class Centroids(Trainer):
    """The entries of codebooks are learned; which weight has which entry stays, and so do grids of inputs.

    Few numbers are trained, so it is quick to gain what there is. Does not help as much as `ste` may below
    8 entries, where weights have to change their entry.

    References:
        Han et al., Deep Compression, 2015, section 3. https://arxiv.org/abs/1510.00149
    """

    kind: Literal["centroids"] = "centroids"
    schemes: ClassVar[tuple[str, ...]] = ("codebook",)

    def weights(self, scheme: Scheme, weight: Tensor, held: Constraints, axis: int) -> WeightLearner:
        """Return entries that are learned, where the levels are a codebook."""
        from decant.quantize.qat.learners import Entries

        if isinstance(scheme, Codebook):
            return Entries(scheme.levels(weight, held.mask, axis), weight, held)
        return super().weights(scheme, weight, held, axis)


Train = Annotated[Ste | Lsq | Pact | Ttq | ErrorDecay | Centroids, Field(discriminator="kind")]


def check_pairing(train: Train, scheme: Scheme, activations_given: bool) -> str:
    """Return why the weights of a scheme cannot be trained so; empty where they can."""
    kinds: tuple[type[Trainer], ...] = get_args(get_args(Train)[0])
    fitting = [
        str(kind.model_fields["kind"].default)
        for kind in kinds
        if scheme.kind in kind.schemes and (activations_given or not kind.needs_activations)
    ]
    if scheme.kind not in train.schemes:
        return (
            f"train.kind: {train.kind} trains weights of the scheme {' or '.join(train.schemes)}, and these "
            f"are {scheme.kind}; take one of {fitting}"
        )
    if train.needs_activations and not activations_given:
        return (
            f"train.kind: {train.kind} learns where inputs are cut, and there are no activations to round; "
            f"add activations, or take one of {fitting}"
        )
    return ""
