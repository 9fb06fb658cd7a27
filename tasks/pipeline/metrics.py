"""The numbers that models are measured by: one set for each target, by the kind that params.yaml says.

Stages write and read them, gates judge them, flows compare them: all by this table and no list of their own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number of a model, by its key in metrics/<model>.json.

    Attributes:
        key: Its name.
        least: The least that it can be.
        most: The most that it can be; where that is infinite, it is finite all the same.
        better: Which end is the better one, so that it can have a gate; None where neither is, as of the ends
            of an interval.
        title: Its head in the report, with the unit; empty where it has no column.
        shown: How it is written there, once it is multiplied by `times` and divided by `over`.
        meaning: A sentence for the list below the table.
        ranked: Whether the best of its column is marked.
        always: Whether every model of its set has it.
    """

    key: str
    least: float
    most: float
    better: Literal["higher", "lower"] | None = None
    title: str = ""
    shown: str = ""
    times: float = 1
    over: float = 1
    meaning: str = ""
    ranked: bool = True
    always: bool = True

    def text(self, value: float) -> str:
        """Return a value as the report writes it."""
        return format(self.times * value / self.over, self.shown)


@dataclass(frozen=True)
class MetricSet:
    """All numbers of the models of one project.

    Attributes:
        target: The kind of target.
        metrics: In the order in which they are written.
        quality: The key of the one that is drawn against size, and has an interval.
        headline: The keys that `dvc metrics show` prints.
        columns: The keys that the report's table has, in its order.
        curve: The columns that a training's curve has.
        axis: What stands beside the picture's axis of quality.
        rough: How a quality is written where the picture's scale is coarse.
        point: A difference in quality, as it is drawn, that is worth a word; what the picture's scale is in.
        good: What a model of high quality is.
        surely: A sentence on the interval of the quality.
        change: A sentence on the quality less the teacher's; empty where that says nothing.
    """

    target: str
    metrics: tuple[Metric, ...]
    quality: str
    headline: tuple[str, ...]
    columns: tuple[str, ...]
    curve: tuple[str, ...]
    axis: str
    rough: str
    point: float
    good: str
    surely: str
    change: str = ""

    @cached_property
    def by_key(self) -> dict[str, Metric]:
        """The metrics by their keys."""
        return {metric.key: metric for metric in self.metrics}

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all metrics."""
        return tuple(self.by_key)

    def of(self, row: Collection[str]) -> tuple[Metric, ...]:
        """Return the metrics that a row with these keys has, or should have."""
        return tuple(metric for metric in self.metrics if metric.always or metric.key in row)

    @property
    def higher(self) -> dict[str, bool]:
        """Every metric that has a better end, and whether that is the higher one."""
        return {metric.key: metric.better == "higher" for metric in self.metrics if metric.better}

    @property
    def gated(self) -> dict[str, bool]:
        """Every metric that can have a gate: the same, and those that other stages measure beside them."""
        beside = (metric for sets in EVIDENCE.values() for metric in sets[self.target])
        return self.higher | {metric.key: metric.better == "higher" for metric in beside if metric.better}


def interval(key: str) -> tuple[str, str]:
    """Return the keys of the ends of a metric's 95 % interval."""
    return f"{key}_low", f"{key}_high"


COSTS = (
    Metric(
        "size_bytes",
        1,
        math.inf,
        "lower",
        "size, KB",
        ",.1f",
        over=1000,
        meaning="the files on disk that rebuild the model, 1 KB = 1000 bytes",
    ),
    Metric(
        "ratio",
        0,
        math.inf,
        "higher",
        "ratio",
        ".1f",
        meaning="the teacher's weights in float32 over that size",
    ),
    Metric("parameters", 1, math.inf, "lower"),
    Metric("nonzeros", 0, math.inf, "lower"),
    Metric(
        "macs",
        0,
        math.inf,
        "lower",
        "MMACs",
        ".2f",
        over=1e6,
        meaning="million multiplications for one image, zeros multiplied like any other weight",
    ),
    Metric(
        "sparsity",
        0,
        1,
        "higher",
        "zeros %",
        ".1f",
        100,
        meaning="sparsity, the share of zeros among the weights of convolutions and linear layers",
        ranked=False,
    ),
    Metric(
        "bits_per_weight",
        0,
        math.inf,
        "lower",
        "bits per weight",
        ".2f",
        meaning="size over the number of parameters, zeros included; a smaller network has fewer parameters "
        "instead",
        ranked=False,
    ),
)
"""What a model takes, whatever it answers."""

COST_COLUMNS = ("size_bytes", "ratio", "sparsity", "bits_per_weight", "macs")
"""Those of them that every table shows, last."""


def _interval(key: str, least: float, most: float) -> tuple[Metric, Metric]:
    """Return the ends of a metric's 95 % interval."""
    return Metric(f"{key}_low", least, most), Metric(f"{key}_high", least, most)


def _share(key: str, title: str, meaning: str) -> Metric:
    """Return a metric in [0, 1], of which more is better, shown in per cent."""
    return Metric(key, 0, 1, "higher", f"{title} %", ".2f", 100, meaning=meaning)


MANY = 10
"""From how many classes on it is worth a number whether the right one is among the five likeliest."""

_MACRO_F1 = _share(
    "macro_f1",
    "macro F1",
    "F1, the harmonic mean of precision and recall, of each class or label; mean over them",
)

_BALANCED = _share(
    "balanced_accuracy",
    "balanced",
    "balanced accuracy, the share of each class's test examples that are recognized; mean over the classes",
)

OF_CLASSES = MetricSet(
    target="classes",
    metrics=(
        _share(
            "accuracy",
            "accuracy",
            "share of test images whose class is predicted rightly",
        ),
        *_interval("accuracy", 0, 1),
        replace(
            _share(
                "top5_accuracy",
                "top 5",
                f"share of test images whose class is among the five likeliest; from {MANY} classes on",
            ),
            always=False,
        ),
        # Not in the files of models that were measured before these two were.
        replace(_BALANCED, always=False),
        replace(_MACRO_F1, always=False),
        Metric(
            "nll",
            0,
            math.inf,
            "lower",
            "NLL",
            ".3f",
            meaning="mean negative log likelihood of the right class, in nats; lower is better",
        ),
        Metric(
            "calibration_error",
            0,
            1,
            "lower",
            "ECE %",
            ".2f",
            100,
            meaning="expected calibration error, how far confidence is from accuracy, in points; lower is "
            "better",
        ),
        _share(
            "agreement",
            "agreement",
            "share of test images for which model and teacher predict the same class, right or wrong",
        ),
        *COSTS,
    ),
    quality="accuracy",
    headline=("accuracy", "agreement", "nll", "ratio", "size_bytes"),
    columns=(
        "accuracy",
        "agreement",
        "nll",
        "calibration_error",
        *COST_COLUMNS,
    ),
    curve=("epoch", "loss", "validation_loss", "accuracy", "validation_accuracy"),
    axis="accuracy on the test split, % (bars: 95 % interval)",
    rough="{:.1f} %",
    point=1,
    good="accurate",
    surely="where the accuracy on all such images lies, judged from this many (Wilson). All models are "
    "tested on the same images, so the difference of two is surer than their intervals suggest",
    change="accuracy less the teacher's, in percentage points",
)
"""Of networks that tell classes apart, on examples with labels."""

OF_OUTPUTS = MetricSet(
    target="same",
    metrics=(
        Metric(
            "cosine",
            -1,
            1,
            "higher",
            "cosine",
            ".4f",
            meaning="cosine of the angle between the model's outputs and the teacher's, mean over test rows; "
            "1 is the same direction",
        ),
        *_interval("cosine", -1, 1),
        Metric(
            "cosine_p1",
            -1,
            1,
            "higher",
            "1st percentile",
            ".4f",
            meaning="the cosine that 99 of 100 test rows reach",
        ),
        Metric("cosine_least", -1, 1, "higher", "least", ".4f", meaning="the cosine of the worst test row"),
        Metric(
            "relative_error",
            0,
            math.inf,
            "lower",
            "error %",
            ".2f",
            100,
            meaning="length of the difference from the teacher's outputs over the length of these, mean over "
            "test rows; lower is better",
        ),
        *_interval("relative_error", 0, math.inf),
        *COSTS,
    ),
    quality="cosine",
    headline=("cosine", "cosine_p1", "cosine_least", "relative_error", "ratio", "size_bytes"),
    columns=(
        "cosine",
        "cosine_p1",
        "cosine_least",
        "relative_error",
        *COST_COLUMNS,
    ),
    curve=("epoch", "loss", "validation_loss", "validation_cosine"),
    axis="cosine to the teacher's outputs on the test split (bars: 95 % interval)",
    rough="{:.3f}",
    point=0.01,
    good="near to the teacher",
    surely="where the mean cosine of all such rows lies, judged from this many",
)
"""Of networks whose examples have no labels: the teacher's outputs are what is right."""

OF_NUMBERS = MetricSet(
    target="numbers",
    metrics=(
        Metric(
            "r2",
            -math.inf,
            1,
            "higher",
            "R²",
            ".4f",
            meaning="1 less the squared error over the variance of the truth; 1 is right everywhere, 0 is as "
            "good as the mean",
        ),
        *_interval("r2", -math.inf, 1),
        Metric(
            "mae",
            0,
            math.inf,
            "lower",
            "MAE",
            ".4g",
            meaning="mean absolute error on the test split, in the target's own unit; lower is better",
        ),
        *_interval("mae", 0, math.inf),
        Metric(
            "rmse",
            0,
            math.inf,
            "lower",
            "RMSE",
            ".4g",
            meaning="root of the mean squared error, in the same unit; lower is better",
        ),
        Metric(
            "from_teacher",
            0,
            math.inf,
            "lower",
            "from teacher",
            ".4g",
            meaning="mean absolute difference from what the teacher predicts, in the same unit; lower is "
            "better",
        ),
        *COSTS,
    ),
    quality="r2",
    headline=("mae", "rmse", "r2", "from_teacher", "ratio", "size_bytes"),
    columns=(
        "r2",
        "mae",
        "rmse",
        "from_teacher",
        *COST_COLUMNS,
    ),
    curve=("epoch", "loss", "validation_loss", "validation_mae"),
    axis="R² on the test split (bars: 95 % interval)",
    rough="{:.3f}",
    point=0.01,
    good="near to the truth",
    surely="where R² on all such rows lies, judged from this many (bootstrap, 1,000 draws)",
)
"""Of networks that predict numbers."""

OF_BALANCED = replace(
    OF_CLASSES,
    target="balanced",
    metrics=(
        _BALANCED,
        *_interval("balanced_accuracy", 0, 1),
        _MACRO_F1,
        *(each for each in OF_CLASSES.metrics if each.key not in (_BALANCED.key, _MACRO_F1.key)),
    ),
    quality="balanced_accuracy",
    headline=("balanced_accuracy", "macro_f1", *OF_CLASSES.headline),
    columns=("balanced_accuracy", "macro_f1", *OF_CLASSES.columns),
    axis="balanced accuracy on the test split, % (bars: 95 % interval)",
    surely="where it lies on all such examples, judged from this many (bootstrap, 1,000 draws)",
    change="balanced accuracy less the teacher's, in percentage points",
)
"""Of networks that tell apart classes of which some are rare."""

OF_LABELS = MetricSet(
    target="labels",
    metrics=(
        _share(
            "map",
            "mAP",
            "average precision, the area under precision over recall, mean over the labels",
        ),
        *_interval("map", 0, 1),
        _share(
            "micro_f1",
            "micro F1",
            "F1 of all marks of all labels together; a label is said where its logit is above 0",
        ),
        _MACRO_F1,
        _share(
            "agreement",
            "agreement",
            "share of marks that model and teacher set alike, right or wrong",
        ),
        *COSTS,
    ),
    quality="map",
    headline=("map", "micro_f1", "macro_f1", "agreement", "ratio", "size_bytes"),
    columns=(
        "map",
        "micro_f1",
        "macro_f1",
        "agreement",
        *COST_COLUMNS,
    ),
    curve=("epoch", "loss", "validation_loss", "validation_micro_f1"),
    axis="mean average precision on the test split, % (bars: 95 % interval)",
    rough="{:.1f} %",
    point=1,
    good="precise",
    surely="where it lies on all such rows, judged from this many (bootstrap, 200 draws)",
    change="mean average precision less the teacher's, in percentage points",
)
"""Of networks that tell several labels at once."""

OF_TOKENS = MetricSet(
    target="tokens",
    metrics=(
        _share(
            "token_accuracy",
            "next token",
            "share of the tokens of test texts that are predicted rightly from those before them",
        ),
        *_interval("token_accuracy", 0, 1),
        Metric(
            "perplexity",
            1,
            math.inf,
            "lower",
            "perplexity",
            ".4g",
            meaning="exponential of the mean negative log likelihood of a token, in nats: of how many "
            "equally likely ones a model is as unsure; lower is better; of one tokenizer alone it compares",
        ),
        *_interval("perplexity", 1, math.inf),
        Metric(
            "bits_per_byte",
            0,
            math.inf,
            "lower",
            "bits per byte",
            ".4f",
            meaning="negative log likelihood in bits over the bytes of the texts in UTF-8, whatever the "
            "tokenizer; lower is better",
        ),
        *_interval("bits_per_byte", 0, math.inf),
        _share(
            "agreement",
            "agreement",
            "share of tokens for which model and teacher predict the same, right or wrong",
        ),
        *COSTS,
    ),
    quality="token_accuracy",
    headline=("perplexity", "bits_per_byte", "token_accuracy", "agreement", "ratio", "size_bytes"),
    columns=("token_accuracy", "perplexity", "bits_per_byte", "agreement", *COST_COLUMNS),
    curve=("epoch", "loss", "validation_loss", "validation_token_accuracy"),
    axis="next tokens predicted rightly on the test split, % (bars: 95 % interval)",
    rough="{:.1f} %",
    point=1,
    good="accurate",
    surely="where that share on all such texts lies, judged from this many (bootstrap over texts, 1,000 "
    "draws)",
    change="that share less the teacher's, in percentage points",
)
"""Of networks that predict the next token of a text."""

_ERRORS = (
    Metric(
        "mean_corruption_error",
        0,
        math.inf,
        "lower",
        "mCE",
        ".3f",
        meaning="error under corruptions over the teacher's, mean over the corruptions; 1 is as stable as "
        "the teacher",
        always=False,
    ),
    Metric(
        "relative_corruption_error",
        0,
        math.inf,
        "lower",
        "relative mCE",
        ".3f",
        meaning="what corruptions add to the error over what they add to the teacher's, mean over the "
        "corruptions; above 1 a model lost more than its accuracy on clean inputs says",
        always=False,
    ),
)
"""How much worse corruptions make a model, beside its teacher; not where the teacher makes no error."""

_WEIGHTS = (
    Metric(
        "l2_ratio",
        0,
        math.inf,
        title="L2 ratio",
        shown=".3f",
        meaning="root of the sum of the squared weights over the teacher's, batch norms folded into them",
        always=False,
    ),
    Metric(
        "lipschitz_ratio",
        0,
        math.inf,
        "lower",
        "Lipschitz ratio",
        ".3f",
        meaning="upper bound of how far a step of the inputs moves the answers, over the teacher's bound",
        always=False,
    ),
)

_STABLE_CLASSES = (
    replace(
        _share(
            "corruption_accuracy",
            "corrupted",
            "share of corrupted test examples that are predicted rightly, mean over corruptions and "
            "strengths",
        ),
        always=False,
    ),
    replace(
        _share(
            "corruption_agreement",
            "corrupted agreement",
            "share of corrupted test examples on which model and teacher predict the same class",
        ),
        always=False,
    ),
    *_ERRORS,
    Metric(
        "negative_flips",
        0,
        1,
        "lower",
        "negative flips %",
        ".2f",
        100,
        meaning="share of test examples that the teacher predicts rightly and the model wrongly",
    ),
    Metric(
        "logit_drift",
        0,
        math.inf,
        "lower",
        "drift, nats",
        ".4f",
        meaning="KL divergence of the model's class probabilities from the teacher's, mean over test "
        "examples",
    ),
    Metric(
        "worst_class_drop",
        -1,
        1,
        "lower",
        "worst class %",
        ".2f",
        100,
        meaning="the teacher's accuracy on a class less the model's, for the class that lost most",
    ),
    Metric(
        "classes_worse",
        0,
        math.inf,
        "lower",
        "classes worse",
        ".0f",
        meaning="classes on which the model is worse than chance explains (exact McNemar, Holm, 5 %)",
    ),
    Metric(
        "mcnemar_p",
        0,
        1,
        title="p",
        shown=".3g",
        meaning="how likely chance alone makes the accuracies of model and teacher differ as much (exact "
        "McNemar); above 0.05 they are no different as far as this test set can tell",
    ),
    Metric(
        "smallest_difference",
        0,
        1,
        title="smallest difference %",
        shown=".2f",
        times=100,
        meaning="the smallest difference from the teacher's accuracy that this test set shows in four of "
        "five cases",
    ),
    *_WEIGHTS,
)

STABILITY = {
    "classes": _STABLE_CLASSES,
    "balanced": _STABLE_CLASSES,
    "labels": (
        replace(
            _share(
                "corruption_micro_f1", "corrupted micro F1", "micro F1, mean over corruptions and strengths"
            ),
            always=False,
        ),
        replace(
            _share(
                "corruption_agreement",
                "corrupted agreement",
                "share of marks of corrupted test examples that model and teacher set alike",
            ),
            always=False,
        ),
        *_ERRORS,
        *_WEIGHTS,
    ),
    "numbers": (
        Metric(
            "corruption_mae",
            0,
            math.inf,
            "lower",
            "corrupted MAE",
            ".4g",
            meaning="mean absolute error on corrupted test examples, mean over corruptions and strengths",
            always=False,
        ),
        Metric(
            "corruption_from_teacher",
            0,
            math.inf,
            "lower",
            "corrupted from teacher",
            ".4g",
            meaning="mean absolute difference from what the teacher predicts for the same corrupted examples",
            always=False,
        ),
        *_ERRORS,
        *_WEIGHTS,
    ),
    "same": (
        Metric(
            "corruption_cosine",
            -1,
            1,
            "higher",
            "corrupted cosine",
            ".4f",
            meaning="cosine of the model's outputs and the teacher's for the same corrupted examples, mean "
            "over corruptions and strengths",
            always=False,
        ),
        Metric(
            "corruption_cosine_least",
            -1,
            1,
            "higher",
            "worst corruption",
            ".4f",
            meaning="the same of the corruption and strength where it is lowest",
            always=False,
        ),
        *_WEIGHTS,
    ),
    "tokens": _WEIGHTS,
}
"""What stability/<model>.json has, by the target's kind; the inputs' type decides which of them there are."""

EXPLANATIONS = (
    Metric(
        "explanations_kept",
        -1,
        1,
        "higher",
        "reasons",
        ".3f",
        meaning="Spearman's rank correlation of the model's explanations with the teacher's, mean over test "
        "examples and methods",
        always=False,
    ),
    Metric(
        "explanations_floor",
        -1,
        1,
        title="floor",
        shown=".3f",
        meaning="the same of the teacher's explanations in two draws of each method",
        always=False,
    ),
    Metric(
        "explanations_top",
        0,
        1,
        "higher",
        "top features %",
        ".1f",
        100,
        meaning="share of an example's most important features that are the same as the teacher's",
        always=False,
    ),
    Metric(
        "explanations_deletion",
        -math.inf,
        math.inf,
        "higher",
        "deletion",
        ".3f",
        meaning="how much lower the answer is while the features that explanations rank first are removed "
        "than while random ones are; below 0 explanations mean nothing",
        always=False,
    ),
    Metric(
        "explanations_insertion",
        -math.inf,
        math.inf,
        "higher",
        "insertion",
        ".3f",
        meaning="how much higher the answer is with these features alone than with random ones alone",
        always=False,
    ),
)
"""What explain/<model>.json has; nothing where no explanation fits the inputs or the target."""

EVIDENCE: Mapping[str, Mapping[str, tuple[Metric, ...]]] = {
    "stability": STABILITY,
    "explain": dict.fromkeys(("balanced", "classes", "same", "numbers", "labels", "tokens"), EXPLANATIONS),
}
"""What other stages than `evaluate` write of a model, in <folder>/<model>.json, by the target's kind."""

SETS = (OF_BALANCED, OF_CLASSES, OF_OUTPUTS, OF_NUMBERS, OF_LABELS, OF_TOKENS)
"""A row is of the first whose quality has an interval there: all classes have the balanced accuracy."""

BY_TARGET = {each.target: each for each in SETS}

BETTER_HIGHER = {key: higher for each in SETS for key, higher in each.gated.items()}
"""Every metric that has a better direction, and whether that is up."""

BY_KEY = {
    metric.key: metric
    for each in SETS
    for metric in (*each.metrics, *(one for sets in EVIDENCE.values() for one in sets[each.target]))
}
"""Every metric that there is."""


def set_of(keys: Collection[str]) -> MetricSet:
    """Return the set that a row with these keys is of; that of classes where it has no quality at all."""
    return next((each for each in SETS if interval(each.quality)[0] in keys), OF_CLASSES)
