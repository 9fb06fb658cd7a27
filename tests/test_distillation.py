"""Losses on a teacher's answers: by hand, by loops in double precision, beside torchdistill; and at work."""

import copy
import importlib.util
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.costs.divergence import softened_kl
from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.finetune.params import FinetuneParams
from decant.inputs import IDS, LENGTH, MASK, TensorInput
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.execution import make_deterministic
from decant.targets import Numbers
from decant.training import fit as fit_module
from decant.training.batches import batches, told_rows
from decant.training.feature_losses import (
    Attention,
    Contrastive,
    Hints,
    Relational,
    Similarity,
    angles,
    attention,
    distances,
)
from decant.training.fit import fit_
from decant.training.learners import Adapter, Contrast, critic_loss, similarities_to
from decant.training.logit_losses import (
    Decoupled,
    Dist,
    MultiLevel,
    Smoothing,
    Standardized,
    Temperature,
    standardized,
)
from decant.training.losses import Mix, Part, SoftTargets, against_teacher, loss_of, warning
from decant.training.ramps import Ramp
from decant.training.recipe import Sgd, Training
from decant.training.resume import Scratch
from decant.training.scaling import Scaler
from decant.training.soft import Answers, Link, Soft
from decant.training.teaching import Teaching, teaching
from tasks.pipeline.params import validate
from tasks.validate.labels import _needing
from tests.nets import striped

KINDS = get_args(get_args(SoftTargets)[0])
TRAIN, VALIDATION = striped(0), striped(1, 48)
LAYERS = {"layers": {"stages.1": "stages.2"}}
BLOCKS: dict[str, dict[str, Any]] = {
    kind: {"kind": kind}
    for kind in (
        "softmax",
        "temperature",
        "standardized",
        "multi-level",
        "decoupled",
        "dist",
        "outputs",
        "smoothing",
    )
} | {
    "hints": {"kind": "hints", **LAYERS},
    "attention": {"kind": "attention", "layers": {"stages.0": "stages.0"}},
    "relational": {"kind": "relational", **LAYERS},
    "similarity": {"kind": "similarity"},
    "contrastive": {"kind": "contrastive", **LAYERS, "width": 8, "negatives": 16},
    "mix": {
        "kind": "mix",
        "hard": {"start": 0.0, "end": 0.5},
        "parts": [
            {"loss": {"kind": "temperature", "temperature": {"start": 8.0, "end": 2.0}}},
            {"loss": {"kind": "hints", **LAYERS}, "weight": {"start": 1.0, "end": 0.0, "until": 0.5}},
            {"loss": {"kind": "relational"}, "weight": 0.1},
        ],
    },
}


def made(name: str, **more: Any) -> Soft:
    return validate(BLOCKS[name] | more, SoftTargets, "loss")


def numbers(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(
        *(shape or (5, 4)), generator=torch.Generator().manual_seed(seed), dtype=torch.double
    )


LABELS = torch.tensor([0, 2, 3, 1, 0])


def teacher() -> nn.Module:
    return build(Resnet(widths=(8, 16), blocks=(1, 2)), (1, 8, 8), 3, seed=2).eval()


def student() -> nn.Module:
    return build(Resnet(widths=(4, 8), blocks=(1, 1)), (1, 8, 8), 3, seed=1)


def trained(
    loss: Any,
    folder: Path | None = None,
    module: nn.Module | None = None,
    device: str = "cpu",
    **changes: Any,
) -> tuple[nn.Module, list[dict[str, float]]]:
    recipe = {"epochs": 2, "batch_size": 32, "optimizer": Sgd(learning_rate=0.05)} | changes
    module = student() if module is None else module
    place = None if folder is None else Scratch(folder, "id")
    curve = fit_(
        module,
        Training(**recipe),
        loss,
        TRAIN,
        VALIDATION,
        scratch=place,
        seed=3,
        constraints={},
        title="test",
        device=device,
    )
    return module, curve


def taught(loss: Soft) -> Teaching:
    return against_teacher(loss, teacher())


# --- the common exam


def test_every_kind_is_examined() -> None:
    assert set(BLOCKS) == {kind.model_fields["kind"].default for kind in KINDS}


@pytest.mark.parametrize("name", BLOCKS)
def test_exam(name: str) -> None:
    """It trains to finite numbers, twice to the same ones; teacher and student stay as they are."""
    loss = made(name)
    assert validate(loss.model_dump(), SoftTargets) == loss
    of, before = teacher(), copy.deepcopy(teacher().state_dict())
    module, curve = trained(against_teacher(loss, of), epochs=1)
    again, other = trained(against_teacher(loss, of), epochs=1)
    assert all(math.isfinite(value) for row in curve for value in row.values())
    assert curve == other
    assert all(
        torch.equal(one, two) for one, two in zip(module.parameters(), again.parameters(), strict=True)
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in of.state_dict().items())
    assert set(module.state_dict()) == set(student().state_dict())
    assert not any(layer._forward_hooks for layer in module.modules())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_gpu_repeats_each_loss_to_the_bit_and_agrees_with_the_processor(name: str) -> None:
    make_deterministic(1)
    curves = []
    for device in ("cpu", "cuda", "cuda"):
        lesson = against_teacher(made(name), teacher(), device=device)
        curves.append(trained(lesson, epochs=1, device=device)[1])
    assert curves[1] == curves[2]
    assert curves[1][0]["loss"] == pytest.approx(curves[0][0]["loss"], rel=1e-2)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_student_that_says_the_same_as_its_teacher_has_no_soft_loss(name: str) -> None:
    if name in ("smoothing", "contrastive"):
        pytest.skip("compares with labels, or with other images")
    network = teacher()
    block = BLOCKS[name] | ({"layers": {"stages.1": "stages.1"}} if "layers" in BLOCKS[name] else {})
    loss = validate(block | {"hard": 0.0}, SoftTargets)
    if isinstance(loss, Mix):
        loss = loss.model_copy(
            update={"parts": tuple(part for part in loss.parts if part.loss.kind != "hints")}
        )
    lesson = against_teacher(loss, network)
    with lesson.listening(network, TRAIN, 0) as beside:
        assert beside == []
        inputs = (TRAIN.images[:16].float() / 255,)
        value = lesson(inputs, network(*inputs), TRAIN.labels[:16])
    assert value.item() == pytest.approx(0, abs=2e-4 if name == "similarity" else 1e-5)


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    name: (lambda z, name=name: made(name)(z, numbers(9), LABELS))  # type: ignore[misc]
    for name in ("standardized", "multi-level", "decoupled", "dist", "smoothing", "relational", "similarity")
} | {
    "attention": lambda z: made("attention").between(
        Link(z.reshape(2, 2, 5, 1), numbers(9, 2, 3, 5, 1)), None
    ),  # type: ignore
    "hints": lambda z: made("hints").between(Link(z, numbers(9)), None),  # type: ignore
    "decoupled, standardized": lambda z: made("decoupled", standardize=True)(z, numbers(9), LABELS),
    "multi-level, standardized": lambda z: made("multi-level", standardize=True)(z, numbers(9), LABELS),
    "contrastive": lambda z: critic_loss(
        F.normalize(z) @ F.normalize(numbers(8, 4, 7)) / 0.2, z.new_ones(())
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_differences(name: str) -> None:
    assert torch.autograd.gradcheck(GRADIENTS[name], (numbers(1).requires_grad_(),))


# --- by hand, and by loops in double precision


def probabilities(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [each / math.fsum(powers) for each in powers]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_standardized(row: list[float]) -> list[float]:
    mean = math.fsum(row) / len(row)
    deviation = math.sqrt(math.fsum((z - mean) ** 2 for z in row) / len(row))
    return [(z - mean) / deviation for z in row]


def test_standardized_logits_by_hand() -> None:
    # 1, 3 have the mean 2 and the deviation 1; 0, 0 have none.
    found = standardized(torch.tensor([[1.0, 3.0], [5.0, 5.0], [-10.0, 10.0]]))
    assert found.tolist() == [[-1, 1], [0, 0], [-1, 1]]


def test_logits_standardized_agree_with_a_loop_whatever_their_size() -> None:
    z, t = numbers(1), numbers(2)
    rows = zip(z.tolist(), t.tolist(), strict=True)
    both = [(naive_standardized(b), naive_standardized(a)) for a, b in rows]
    expected = 4 * math.fsum(kl(probabilities(p, 2), probabilities(q, 2)) for p, q in both) / len(z)
    loss = Standardized(temperature=2.0, factor=1.0, hard=0.0)
    assert loss(z, t, LABELS).item() == pytest.approx(expected, rel=1e-9)
    assert Standardized(hard=0.1)(z, t, LABELS).item() == pytest.approx(
        0.1 * F.cross_entropy(z, LABELS).item() + 9 * expected
    )
    assert loss(5 * z + 3, 0.1 * t, LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_multi_level_agrees_with_loops() -> None:
    z, t = numbers(3), numbers(4)
    expected = 0.0
    for temperature in (1.0, 3.0):
        p, q = ([probabilities(row, temperature) for row in rows.tolist()] for rows in (z, t))
        n, c = z.shape
        images = sum(
            (sum(p[a][k] * p[b][k] for k in range(c)) - sum(q[a][k] * q[b][k] for k in range(c))) ** 2
            for a in range(n)
            for b in range(n)
        )
        classes = sum(
            (sum(p[i][a] * p[i][b] for i in range(n)) - sum(q[i][a] * q[i][b] for i in range(n))) ** 2
            for a in range(c)
            for b in range(c)
        )
        expected += temperature**2 * sum(map(kl, q, p)) / n + images / n**2 + classes * c / n**2
    found = MultiLevel(temperatures=(1.0, 3.0), hard=0.0)(z, t, LABELS)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_multi_level_standardizes_the_divergence_alone_and_is_weighted() -> None:
    z, t = numbers(3), numbers(4)
    at_two = MultiLevel(temperatures=(2.0,), hard=0.0)
    alike = at_two.model_copy(update={"standardize": True})
    plain, found = at_two(z, t, None), alike(z, t, None)
    relations = plain - softened_kl(z, t, 2.0)
    expected = softened_kl(standardized(z), standardized(t), 2.0) + relations
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    nine = alike.model_copy(update={"factor": 9.0})
    assert nine(z, t, None).item() == pytest.approx(9 * found.item(), rel=1e-9)


def test_relations_of_multi_level_do_not_grow_with_the_batch() -> None:
    z, t = numbers(3), numbers(4)
    loss = MultiLevel(hard=0.0)
    assert loss(z.repeat(6, 1), t.repeat(6, 1), None).item() == pytest.approx(
        loss(z, t, None).item(), rel=1e-9
    )


def test_decoupled_agrees_with_a_loop() -> None:
    z, t, expected = numbers(5), numbers(6), 0.0
    for own, other, label in zip(z.tolist(), t.tolist(), LABELS.tolist(), strict=True):
        q, p = probabilities(own, 2), probabilities(other, 2)
        target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest = [[each / (1 - row[label]) for k, each in enumerate(row) if k != label] for row in (p, q)]
        expected += 4 * (0.5 * target + 3 * kl(*rest)) / len(z)
    found = Decoupled(temperature=2.0, alpha=0.5, beta=3.0, hard=0.0)(z, t, LABELS)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_decoupled_is_the_divergence_where_the_rest_has_the_teacher_s_uncertainty() -> None:
    # KL = KL of the label + (1 - p of the label) * KL of the rest, the paper's equation 7.
    z, t, label = numbers(7, 1, 4), numbers(8, 1, 4), torch.tensor([1])
    uncertain = 1 - t.softmax(1)[0, 1].item()
    found = Decoupled(temperature=1.0, alpha=1.0, beta=uncertain, hard=0.0)(z, t, label)
    assert found.item() == pytest.approx(softened_kl(z, t, 1.0).item(), rel=1e-9)


def correlation(one: list[float], other: list[float]) -> float:
    a, b = ([x - math.fsum(xs) / len(xs) for x in xs] for xs in (one, other))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_dist_agrees_with_loops() -> None:
    z, t = numbers(9), numbers(10)
    p, q = ([probabilities(row, 2) for row in rows.tolist()] for rows in (z, t))
    rows = 1 - sum(map(correlation, p, q)) / len(p)
    columns = (
        1
        - sum(
            correlation([*a], [*b]) for a, b in zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)
        )
        / 4
    )
    found = Dist(temperature=2.0, beta=1.5, gamma=0.5, hard=0.0)(z, t, LABELS)
    assert found.item() == pytest.approx(4 * (1.5 * rows + 0.5 * columns), rel=1e-9)


def test_smoothing_is_the_divergence_from_smoothed_labels() -> None:
    z = numbers(11)
    marks = 0.8 * F.one_hot(LABELS, 4) + 0.05
    expected = (marks * (marks.log() - z.log_softmax(1))).sum(1).mean()
    assert Smoothing(smoothing=0.2)(z, numbers(12), LABELS).item() == pytest.approx(expected.item())


def test_hints_are_a_mean_square_by_hand() -> None:
    found = Hints(layers={"a": "b"}).between(
        Link(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.5]])), NOTHING
    )
    assert found.item() == pytest.approx((4 + 0.25) / 2)


NOTHING = Answers(torch.zeros(1, 1), torch.zeros(1, 1))


def test_an_adapter_is_the_same_linear_map_at_each_place() -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    adapter = Adapter((2, 3, 4, 5), (2, 6, 4, 5))
    expected = F.conv2d(maps, adapter.linear.weight[:, :, None, None], adapter.linear.bias)
    assert torch.allclose(adapter(maps), expected, atol=1e-6)
    assert Adapter((2, 7, 3), (2, 7, 6))(torch.zeros(2, 7, 3)).shape == (2, 7, 6)


def test_attention_by_hand_and_by_a_loop() -> None:
    # Two channels at two places: squares 9 + 16 and 0, so all attention is at the first place.
    assert attention(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])).tolist() == [[1.0, 0.0]]
    s, t, expected = numbers(1, 2, 3, 2, 2), numbers(2, 2, 5, 2, 2), []
    for own, other in zip(s.tolist(), t.tolist(), strict=True):
        maps = []
        for channels in (own, other):
            places = [sum(c[i][j] ** 2 for c in channels) for i in range(2) for j in range(2)]
            maps.append([place / math.hypot(*places) for place in places])
        expected += [(a - b) ** 2 for a, b in zip(*maps, strict=True)]
    loss = Attention(layers={"a": "b"}, factor=1.0)
    assert loss.between(Link(s, t), NOTHING).item() == pytest.approx(sum(expected) / 8, rel=1e-9)


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def test_relations_agree_with_loops() -> None:
    s, t = numbers(1, 4, 3), numbers(2, 4, 6)
    pairs, triples = [], []
    tables = []
    for rows in (s.tolist(), t.tolist()):
        found = [[math.dist(a, b) for b in rows] for a in rows]
        mean = math.fsum(map(math.fsum, found)) / 12
        tables.append([d / mean for row in found for d in row])
    pairs = [huber(a - b) for a, b in zip(*tables, strict=True)]
    for i in range(4):
        for j in range(4):
            for k in range(4):
                cosines = []
                for rows in (s.tolist(), t.tolist()):
                    a, b = ([x - y for x, y in zip(rows[m], rows[i], strict=True)] for m in (j, k))
                    size = math.hypot(*a) * math.hypot(*b)
                    cosines.append(
                        math.fsum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0
                    )
                triples.append(huber(cosines[0] - cosines[1]))
    found = Relational(distance=2.0, angle=3.0, hard=0.0)(s, t, None)
    assert found.item() == pytest.approx(2 * sum(pairs) / 16 + 3 * sum(triples) / 64, rel=1e-9)


def test_a_right_angle_by_hand() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert distances(rows)[0].tolist() == pytest.approx([0, 3 / (3 + 5**0.5), 6 / (3 + 5**0.5)])
    assert angles(rows)[0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_similarities_agree_with_loops() -> None:
    s, t, tables = numbers(1, 3, 2, 2), numbers(2, 3, 5), []
    for rows in (s.flatten(1).tolist(), t.tolist()):
        found = [[math.fsum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
        tables.append([each / math.hypot(*row) for row in found for each in row])
    expected = sum((a - b) ** 2 for a, b in zip(*tables, strict=True)) / 9
    assert Similarity(factor=1.0, hard=0.0)(s, t, None).item() == pytest.approx(expected, rel=1e-9)


def test_the_contrast_agrees_with_the_paper_s_critic() -> None:
    anchors, entries = F.normalize(numbers(1, 3, 4)), F.normalize(numbers(2, 3, 6, 4), dim=2)
    expected = 0.0
    for anchor, rows in zip(anchors.tolist(), entries.tolist(), strict=True):
        for number, entry in enumerate(rows):
            power = math.exp(sum(a * b for a, b in zip(anchor, entry, strict=True)) / 0.3)
            h = power / (power + 5 * 0.4)
            expected -= math.log(h if number == 0 else 1 - h) / 3
    found = critic_loss(similarities_to(anchors, entries) / 0.3, torch.tensor(0.4).double().log())
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_contrast_begins_where_chance_is_right_and_keeps_its_level() -> None:
    torch.manual_seed(0)
    contrast = Contrast((2, 3), (2, 5), 60, width=16, momentum=0.5)
    rows, more = torch.arange(40), {"negatives": 32, "temperature": 1.0}
    begin = contrast(torch.randn(40, 3), torch.randn(40, 5), rows, generator=None, **more).item()
    levels = contrast.levels.clone()
    # In both directions one is told from 32 others, at odds of 1 to 32.
    assert begin == pytest.approx(2 * (math.log(33) + 32 * math.log(33 / 32)), rel=0.05)
    contrast(torch.randn(40, 3), torch.randn(40, 5), rows, generator=None, **more)
    assert torch.equal(contrast.levels, levels)


def test_a_memory_takes_the_features_of_its_rows_and_no_image_is_its_own_negative() -> None:
    torch.manual_seed(0)
    contrast = Contrast((2, 3, 4, 4), (2, 5), 6, width=4, momentum=0.25)
    before = contrast.teachers.clone()
    rows, seen = torch.tensor([4, 1]), torch.randn(2, 5)
    more = {"negatives": 50, "temperature": 0.1}
    contrast(torch.randn(2, 3, 4, 4), seen, rows, generator=torch.Generator().manual_seed(1), **more)
    other = F.normalize(contrast.of_teacher(seen))
    assert torch.allclose(contrast.teachers[rows], F.normalize(0.25 * before[rows] + 0.75 * other))
    assert torch.equal(contrast.teachers[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    drawn = contrast._drawn(rows, 500, torch.Generator().manual_seed(0))
    assert [set(each.tolist()) for each in drawn] == [{0, 1, 2, 3, 5}, {0, 2, 3, 4, 5}]


# Not compared: torchdistill's SPKDLoss takes the sum of |x| where the paper's section 3 takes the length.

# --- beside another implementation, and published formulas

torchdistill = pytest.mark.skipif(
    importlib.util.find_spec("torchdistill") is None,
    reason="compares with torchdistill, where it is installed",
)


def theirs(name: str, s: Tensor, t: Tensor, **settings: Any) -> float:
    from torchdistill.losses import mid_level

    loss = getattr(mid_level, name)(**settings)
    return float(loss({"x": {"output": s}}, {"x": {"output": t}}, LABELS))


PATHS = {"student_output_path": "x", "teacher_output_path": "x"}
MODULES = {
    f"{who}_module_{what}": word
    for who in ("student", "teacher")
    for what, word in (("path", "x"), ("io", "output"))
}


@torchdistill
def test_values_are_torchdistill_s() -> None:
    z, t = numbers(1), numbers(2)
    maps = numbers(3, 4, 3, 2, 2), numbers(4, 4, 6, 2, 2)
    pair = {"a": {who: {"io": "output", "path": "x"} for who in ("student", "teacher")}}
    expected = {
        theirs("KDLoss", z, t, **MODULES, temperature=3.0, alpha=0.3): Temperature(temperature=3.0, hard=0.3)(
            z, t, LABELS
        ),
        theirs("DISTLoss", z, t, **MODULES, beta=2.0, gamma=0.5, tau=2.0): Dist(
            temperature=2.0, beta=2.0, gamma=0.5, hard=0.0
        )(z, t, LABELS),
        theirs("RKDLoss", *maps, **PATHS, dist_factor=25.0, angle_factor=50.0, reduction="mean"): Relational(
            hard=0.0
        )(*maps, None),
        theirs("ATLoss", *maps, at_pairs=pair): Attention(layers={"a": "b"}, factor=1.0).between(
            Link(*maps), NOTHING
        ),
    }
    for reference, found in expected.items():
        assert found.item() == pytest.approx(reference, abs=1e-6, rel=1e-6)


# --- mixing and schedules


def test_a_ramp_goes_from_its_start_to_its_end_and_stays() -> None:
    straight = Ramp(start=8.0, end=2.0, until=0.5)
    assert [straight.at(each) for each in (0.0, 0.25, 0.5, 1.0)] == [8, 5, 2, 2]
    slow = Ramp(start=0.0, end=1.0, shape="cosine")
    assert [slow.at(each) for each in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, (1 - 0.5**0.5) / 2, 0.5, 1])


def test_a_mix_is_the_sum_of_its_parts_at_each_moment() -> None:
    mix = validate(
        {
            "kind": "mix",
            "hard": {"start": 0.0, "end": 0.5},
            "parts": [
                {"loss": {"kind": "temperature", "temperature": {"start": 6.0, "end": 2.0}}, "weight": 0.25},
                {"loss": {"kind": "dist"}, "weight": {"start": 2.0, "end": 1.0}},
            ],
        },
        SoftTargets,
    )
    z, t = numbers(1), numbers(2)
    for progress, share, temperature, weight in (
        (0.0, 0.0, 6.0, 2.0),
        (0.5, 0.25, 4.0, 1.5),
        (1.0, 0.5, 2.0, 1.0),
    ):
        found = mix.total(Answers(z, t, LABELS, progress))
        parts = 0.25 * softened_kl(z, t, temperature) + weight * Dist(hard=0.0)(z, t, LABELS)
        expected = share * F.cross_entropy(z, LABELS) + (1 - share) * parts
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)


NEED_LAYERS = ("hints", "attention", "contrastive")


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in NEED_LAYERS])
def test_the_share_of_labels_follows_a_schedule_in_every_loss(name: str) -> None:
    ramp = {"start": 0.2, "end": 0.6, "until": 0.5}
    z, t = numbers(1), numbers(2)
    block = {key: value for key, value in BLOCKS[name].items() if key not in ("layers", "parts")}
    for progress, share in ((0.0, 0.2), (0.25, 0.4), (1.0, 0.6)):
        found, fixed = (
            validate(block | {"hard": hard}, SoftTargets).total(Answers(z, t, LABELS, progress))
            for hard in (ramp, share)
        )
        assert found.item() == pytest.approx(fixed.item(), rel=1e-9)


def test_a_training_tells_its_loss_how_far_it_is() -> None:
    seen = list[float]()

    class Watched(Temperature):
        def soft(self, answers: Answers) -> Tensor:
            seen.append(answers.progress)
            return super().soft(answers)

    trained(taught(Watched(hard=0.0)), epochs=2)
    steps = len(TRAIN) // 32
    assert seen == pytest.approx([(step + 0.5) / steps / 2 for step in range(2 * steps)])


SOFTMAX = {"loss": {"kind": "softmax"}}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (
            {"kind": "temperature", "temperature": {"start": 0.0, "end": 2.0}},
            "loss.temperature: start and end must be greater than 0",
        ),
        ({"kind": "temperature", "temperature": {"start": 1.0}}, "loss.temperature.end: is missing"),
        ({"kind": "temperature", "temperature": -1}, "loss.temperature: must be greater than 0"),
        ({"kind": "mix", "parts": []}, "loss.parts: needs 1 or more entries"),
        (
            {"kind": "mix", "parts": [{"loss": {"kind": "softmax", "hard": 0.3}}]},
            "loss.parts: hard of softmax is not used here: say it once, beside parts",
        ),
        (
            {"kind": "mix", "hard": {"start": 0, "end": 2}, "parts": [SOFTMAX]},
            "loss.hard: start and end must be at most 1",
        ),
        ({"kind": "hints"}, "loss.layers: is missing"),
        ({"kind": "hints", "layers": {}}, "loss.layers: "),
        ({"kind": "hint", **LAYERS}, "unknown kind 'hint'; did you mean 'hints'?"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(block: dict[str, Any], words: str) -> None:
    with pytest.raises(DecantError) as told:
        validate(block, SoftTargets, "loss")
    assert words in str(told.value)
    assert len(str(told.value).splitlines()) == 2


def test_the_hottest_temperature_of_a_mix_is_warned_of() -> None:
    mix = Mix(parts=(Part(loss=Temperature(temperature=Ramp(start=1.0, end=5.0))), Part(loss=Dist())))
    assert warning(mix, 3) == "loss.temperature: 5 is more than 3-bit weights can follow; try 1 to 2"
    assert warning(mix, 4) is None and warning(Dist(), 2) is None


# --- features at work


def test_features_are_those_of_the_batch_and_an_adapter_is_trained_beside() -> None:
    lesson = taught(made("hints", hard=0.0))
    network, inputs = student(), (TRAIN.images[:8].float() / 255,)
    with lesson.listening(network, TRAIN, 0) as beside:
        assert [tuple(each.shape) for each in beside] == [(16, 8), (16,)]
        value = lesson(inputs, network(*inputs), None)
        own, other = (each[name] for each, name in zip(lesson._seen, ("stages.1", "stages.2"), strict=True))
        assert own.shape == (8, 8, 2, 2) and other.shape == (8, 16, 2, 2)
        assert torch.allclose(value, 10 * F.mse_loss(lesson.learners[0](own), other))
        before = beside[0].clone()
    _, curve = trained(lesson, epochs=3)
    assert not torch.equal(lesson.learners[0].linear.weight, before)
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_places_of_the_teacher_are_averaged_to_the_student_s() -> None:
    lesson = taught(made("attention", layers={"stages.1": "stem"}, hard=0.0, factor=1.0))
    network, inputs = student(), (TRAIN.images[:8].float() / 255,)
    with lesson.listening(network, TRAIN, 0):
        value = lesson(inputs, network(*inputs), None)
        own, other = lesson._seen[0]["stages.1"], lesson._seen[1]["stem"]
    expected = F.mse_loss(attention(own), attention(F.avg_pool2d(other, 2)))
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("kind", "own", "other", "words"),
    [
        (
            "hints",
            "stage.1",
            "stages.1",
            "the student has no layer 'stage.1'; did you mean 'stages.1', 'stages.0' or 'stem.1'?",
        ),
        (
            "hints",
            "stages.1",
            "sages.2",
            "the teacher has no layer 'sages.2'; did you mean 'stages.2', 'stages.1' or 'stages.0'?",
        ),
        (
            "hints",
            "stem",
            "stages.2",
            "stem and stages.2: places of the teacher are averaged to fewer, by a whole number; the "
            "student's has [4, 4, 4] and the teacher's [16, 2, 2] for each example",
        ),
        ("hints", "flatten", "stages.2", "hints compares place by place"),
        ("attention", "flatten", "flatten", "attention needs features with places"),
    ],
)
def test_layers_that_cannot_be_compared_are_told_before_any_step(
    kind: str, own: str, other: str, words: str
) -> None:
    network, block = student(), made(kind, layers={own: other})
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(DecantError) as told:
        trained(taught(block), module=network)
    assert words in str(told.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_one_example_has_no_others_to_be_told_from() -> None:
    with pytest.raises(DecantError, match="contrastive needs other examples, and there is one; take hints"):
        Contrastive(**LAYERS).learner(torch.Size((1, 3)), torch.Size((1, 3)), 1)


def test_each_call_of_a_step_takes_its_share_of_the_rows() -> None:
    """As where gradients of several batches make one step."""
    seen = list[Tensor]()

    class Watched(Temperature):
        def soft(self, answers: Answers) -> Tensor:
            assert answers.rows is not None
            seen.append(answers.rows)
            return super().soft(answers)

    lesson = taught(Watched(hard=0.0))
    lesson.known = torch.arange(96.0)[:, None] * torch.tensor([1.0, 0.5, -1.0])
    lesson.begin_(0.5, torch.tensor([7, 1, 90, 4, 5]), 0)
    for start, count in ((0, 2), (2, 2), (4, 1)):
        outputs = torch.zeros(count, 3)
        value = lesson((), outputs, None)
        rows = torch.tensor([7, 1, 90, 4, 5][start : start + count])
        assert torch.equal(seen[-1], rows)
        assert value == softened_kl(outputs, lesson.known[rows], 4.0)


@pytest.mark.parametrize("texts", [False, True])
def test_rows_are_told_in_the_order_of_the_batches(texts: bool) -> None:
    """Also where texts of like lengths share batches, and images are augmented between the draws."""
    lengths = torch.randint(1, 6, (90,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < lengths[:, None]).long()
    tensors = {IDS: torch.arange(1, 91)[:, None] * mask, MASK: mask}
    token = TensorInput(shape=(LENGTH,), dtype="int64", below=91)
    inputs = {IDS: token, MASK: token.model_copy(update={"below": 2})}
    images = Rows(tensors, inputs) if texts else torch.arange(90.0)[:, None, None, None]
    train = Examples(images, torch.arange(90), tuple(map(str, range(90))))
    augmentation = {} if texts else {"flip": True}
    training = Training(epochs=1, batch_size=8, accumulate=3, augmentation=augmentation)
    lesson = taught(made("temperature"))
    assert next(told_rows(lesson, train, training, 7)) is None
    lesson.known = torch.zeros(90, 90)
    told = [*told_rows(lesson, train, training, 7)]
    found = [labels for _, labels in batches(train, training, 7, torch.device("cpu"))]
    assert len(told) == len(found) == 3
    for rows, labels in zip(told, found, strict=True):
        assert rows is not None and torch.equal(rows, labels)


def test_what_is_trained_beside_is_clipped_with_the_network() -> None:
    """At a norm of nearly 0 nothing moves, the maps of channels neither."""
    lesson, begun = taught(made("hints")), list[dict[str, Tensor]]()

    class Watched(Teaching):
        def begin_(self, progress: float, rows: Tensor | None, seed: int) -> None:
            begun.append({name: tensor.clone() for name, tensor in self.learners.state_dict().items()})
            super().begin_(progress, rows, seed)

    for norm, still in ((1e-30, True), (None, False)):
        begun.clear()
        watched = Watched(lesson.loss, lesson.teachers)
        optimizer = Sgd(learning_rate=0.05)
        trained(watched, epochs=1, clip_gradients=norm, optimizer=optimizer)
        assert begun[0]
        assert still == all(torch.equal(tensor, begun[-1][name]) for name, tensor in begun[0].items())


@pytest.mark.parametrize("name", ["hints", "contrastive", "mix"])
def test_maps_learn_the_same_behind_the_scaler_of_float16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients too are divided by the scale: learning is near that in float32, not 64 times it."""
    monkeypatch.setattr(fit_module, "Scaler", partial(Scaler, scale=64.0))  # which skips no step here
    optimizer = Sgd(learning_rate=0.01)
    _, exact = trained(taught(made(name)), epochs=1, optimizer=optimizer)
    _, found = trained(taught(made(name)), epochs=1, optimizer=optimizer, precision="float16")
    assert found[0]["skipped_steps"] == 0
    assert found[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)


def test_parts_of_a_step_add_up_to_its_loss_where_nothing_depends_on_the_batch() -> None:
    network = build(Mlp(hidden=(8,)), (1, 8, 8), 3, seed=1)
    other = copy.deepcopy(network)
    _, whole = trained(taught(made("temperature")), module=network, batch_size=32)
    _, parts = trained(taught(made("temperature")), module=other, batch_size=8, accumulate=4)
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def test_two_teachers_are_matched_by_their_mean() -> None:
    one, other = teacher(), build(Mlp(hidden=(8,)), (1, 8, 8), 3, seed=4).eval()
    inputs = (TRAIN.images[:8].float() / 255,)
    outputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    found = teaching(Temperature(hard=0.0), (one, other))(inputs, outputs, None)
    mean = (one(*inputs) + other(*inputs)) / 2
    assert found.item() == pytest.approx(softened_kl(outputs, mean, 4.0).item())


@pytest.mark.parametrize(
    "block",
    [
        {"kind": "relational", "hard": 0.5},
        {"kind": "similarity", "layers": {"inner": "inner"}, "hard": 0.0},
        {
            "kind": "mix",
            "parts": [
                {"loss": {"kind": "outputs"}},
                {"loss": {"kind": "hints", "layers": {"inner": "inner"}}},
            ],
        },
    ],
    ids=lambda block: block["kind"],
)
def test_numbers_are_learned_from_outputs_and_features(block: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator)
    target = Numbers(names=("late",), scale=(1.0,))
    train = Examples(Rows({"x": inputs}), inputs.sum(1, keepdim=True), (), target)

    def network(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = {"inner": nn.Linear(3, width), "act": nn.ReLU(), "head": nn.Linear(width, 1)}
        return nn.Sequential(OrderedDict(layers))

    training = Training(epochs=4, batch_size=16, optimizer=Sgd(learning_rate=0.02))
    loss = loss_of(validate(block, SoftTargets), training, network(16, 1).eval(), train, 0)
    with torch.random.fork_rng():
        module = network(4, 2)
    more = {"scratch": None, "seed": 1, "constraints": {}, "title": "test"}
    curve = fit_(module, training, loss, train, train, **more)
    assert curve[-1]["loss"] < curve[0]["loss"]


# --- interrupted, and gone wrong


@pytest.mark.parametrize("name", ["mix", "contrastive", "hints"])
def test_half_and_half_is_the_whole_with_what_is_trained_beside(name: str, tmp_path: Path) -> None:
    whole, curve = trained(taught(made(name)), tmp_path / "whole", epochs=4)
    folder = tmp_path / "half"

    class Stopped(Teaching):
        def begin_(self, progress: float, rows: Tensor | None, seed: int) -> None:
            if progress > 0.5:
                raise KeyboardInterrupt
            super().begin_(progress, rows, seed)

    stopped = taught(made(name))
    with pytest.raises(KeyboardInterrupt):
        trained(Stopped(stopped.loss, stopped.teachers), folder, epochs=4)
    state = Scratch(folder, "id").read()
    assert state is not None and state["beside"]
    second = taught(made(name))
    rest, again = trained(second, folder, epochs=4)
    assert again == curve
    assert all(torch.equal(tensor, rest.state_dict()[key]) for key, tensor in whole.state_dict().items())


def test_a_state_of_another_memory_costs_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(taught(made("contrastive")), tmp_path, epochs=1)
    trained(taught(made("contrastive", width=4)), tmp_path, epochs=1)
    assert "beside's 0.students has the shape [96, 8], expected [96, 4]" in capsys.readouterr().err


def test_a_loss_without_anything_beside_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    trained(taught(made("temperature")), tmp_path, epochs=1)
    state = Scratch(tmp_path, "id").read()
    assert state is not None and "beside" not in state


def test_a_diverging_run_says_where_and_what_to_lower_and_keeps_its_last_numbers(tmp_path: Path) -> None:
    class Wrong(Dist):
        def soft(self, answers: Answers) -> Tensor:
            return super().soft(answers) * (math.nan if answers.progress > 0.5 else 1.0)

    wrong = Part.model_construct(loss=Wrong(), weight=1.0)
    mix = Mix.model_construct(parts=(Part(loss=Temperature()), wrong), hard=0.1)
    network = student()
    with pytest.raises(DecantError) as told:
        trained(taught(mix), tmp_path, network, epochs=4)
    assert str(told.value).startswith(
        "The loss became nan in epoch 3, step 1 of 3 (loss.parts.1 alone: lower its weight too); "
        "lower the learning rate, "
    )
    assert all(bool(tensor.isfinite().all()) for tensor in network.parameters())
    file = Scratch(tmp_path, "id").file
    assert str(told.value).endswith(
        f"; the state after epoch 2 is kept in {file}: torch.load(file)['module'] are its weights"
    )
    whole, curve = trained(taught(Mix(parts=(Part(loss=Temperature()), Part(loss=Dist())))), epochs=4)
    alone = student()
    alone.load_state_dict(torch.load(file, weights_only=True)["module"])
    assert torch.equal(alone(TRAIN.images.float()).isfinite(), torch.ones(len(TRAIN), 3).bool())
    mended = student()
    _, resumed = trained(
        taught(Mix(parts=(Part(loss=Temperature()), Part(loss=Dist())))), tmp_path, mended, epochs=4
    )
    assert resumed == curve and len(resumed) == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, mended.state_dict()[name]), "it goes on from the state that was kept"


def test_a_run_that_diverges_at_once_keeps_no_state(tmp_path: Path) -> None:
    wild = taught(Mix(parts=(Part(loss=Temperature(), weight=1e6), Part(loss=Dist()))))
    with pytest.raises(DecantError, match=r"; no epoch was whole before, so that no state is kept$"):
        trained(wild, tmp_path, optimizer=Sgd(learning_rate=1e6))
    assert not [*tmp_path.iterdir()]


def test_a_part_is_to_blame_where_its_weight_makes_it_infinite() -> None:
    parts = (Part(loss=Dist()), Part.model_construct(loss=Temperature(), weight=1e39))
    with pytest.raises(DecantError, match=r"inf in epoch 1, step 1 of 3 \(loss\.parts\.1 alone: lower"):
        trained(taught(Mix(parts=parts)))
    wild = taught(Mix(parts=(Part(loss=Temperature(), weight=1e6), Part(loss=Dist()))))
    with pytest.raises(
        DecantError, match=r"step 3 of 3 \(every part of it: lower the largest of their weights"
    ):
        trained(wild, optimizer=Sgd(learning_rate=1e6))


def test_a_teacher_of_nan_is_refused_by_the_name_of_its_weight() -> None:
    broken = teacher()
    broken.get_parameter("head.weight").data[0, 0] = math.nan
    with pytest.raises(DecantError, match=r"The teacher's head\.weight holds NaN or infinity, so nothing"):
        loss_of(Temperature(), Training(epochs=1), broken, TRAIN, 3)


def test_a_teacher_of_other_classes_is_refused() -> None:
    other = build(Mlp(hidden=(8,)), (1, 8, 8), 5, seed=4)
    with pytest.raises(
        DecantError, match="The student answers with 3 numbers for each example and its teacher with 5"
    ):
        trained(against_teacher(Temperature(), other))


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "mix"])
def test_losses_of_classes_are_refused_where_there_are_none(name: str) -> None:
    loss = made(name, hard=0.0)
    classes = name not in ("outputs", "hints", "attention", "relational", "similarity", "contrastive")
    assert loss.of_classes == classes
    if not classes:
        assert isinstance(loss_of(loss, Training(epochs=1), teacher(), TRAIN, 0), Teaching)
        return
    for wrong in (loss, Mix(parts=(Part(loss=made(name)),), hard=0.0)):  # type: ignore[arg-type]
        with pytest.raises(DecantError, match=f"loss.kind: {name} compares probabilities of classes, and"):
            loss_of(wrong, Training(epochs=1), teacher(), TRAIN, 0)


@pytest.mark.parametrize(
    ("labels", "loss", "lines"),
    [
        (True, made("hints"), []),
        (False, made("hints", hard=0.0), []),
        (
            False,
            made("hints"),
            ["m.loss.hard: is the share of labels in the loss, and data.labels names none"],
        ),
        (
            True,
            made("dist"),
            ["m.loss.kind: dist needs logits of classes, and the target has none; take outputs"],
        ),
        (
            False,
            Mix(parts=(Part(loss=made("hints", hard=0.5)), Part(loss=Dist())), hard=0.0),  # type: ignore[arg-type]
            ["m.loss.parts.1.loss.kind: dist needs logits of classes, and data.labels names none"],
        ),
    ],
    ids=str,
)
def test_validate_tells_what_needs_classes_or_labels(labels: bool, loss: Soft, lines: list[str]) -> None:
    block = {"op": "finetune", "from": "teacher", "training": {"epochs": 1}, "loss": loss.model_dump()}
    found = list(_needing(validate(block, FinetuneParams), "m", "numbers" if labels else "same"))
    assert [line[: len(start)] for line, start in zip(found, lines, strict=True)] == lines
