"""Each sentence of the losses' docstrings, held: by hand, by a loop in double precision, by the paper."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from decant.costs.divergence import distance, divergence, softened_kl, squared_error
from decant.errors import DecantError
from decant.examples import Examples
from decant.training.losses import Outputs, Softmax, SoftTargets, Temperature, against_teacher, loss_of
from decant.training.recipe import Training
from tasks.pipeline.params import validate

LOSSES = [
    kind
    for kind in get_args(get_args(SoftTargets)[0])
    if not any(f.is_required() for f in kind.model_fields.values())
]
STUDENT = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, -1.0]])
LABELS = torch.tensor([0, 2])


def logits(seed: int, shape: tuple[int, int] = (5, 4), scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def naive_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 * mean over rows of sum p log(p / q), by loops."""
    rows = []
    for q_row, p_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(z / temperature) for z in row] for row in (p_row, q_row))
        rows.append(
            math.fsum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        )
    return temperature**2 * math.fsum(rows) / len(rows)


@pytest.mark.parametrize("kind", LOSSES)
def test_exam(kind: type[Softmax]) -> None:
    loss = validate({"kind": kind.model_fields["kind"].default}, SoftTargets)
    student = STUDENT.clone().requires_grad_()
    teacher = TEACHER.clone().requires_grad_()
    value = loss(student, teacher, LABELS)
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None
    assert torch.equal(loss(student, teacher, LABELS), value)
    assert validate(loss.model_dump(), SoftTargets) == loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
def test_the_same_logits_give_zero(temperature: float) -> None:
    assert softened_kl(TEACHER, TEACHER, temperature).item() == pytest.approx(0, abs=1e-6)
    # Logits are known up to a constant in each row.
    assert softened_kl(TEACHER.double() + 7, TEACHER.double(), temperature).item() == pytest.approx(0)


def test_at_temperature_one_it_is_the_sum_by_hand() -> None:
    # Two classes at odds 3 : 1 and 1 : 1, so p = (3/4, 1/4) and q = (1/2, 1/2).
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(expected)


@given(st.integers(0, 99), st.integers(100, 199), st.floats(0.3, 30))
def test_it_agrees_with_a_loop_at_every_temperature(one: int, other: int, temperature: float) -> None:
    student, teacher = logits(one), logits(other)
    expected = naive_kl(student, teacher, temperature)
    assert softened_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert expected >= 0


def test_it_is_teacher_against_student_and_not_the_other_way_round() -> None:
    assert softened_kl(STUDENT, TEACHER, 1.0).item() != pytest.approx(
        softened_kl(TEACHER, STUDENT, 1.0).item(), rel=1e-3
    )


def test_it_is_a_mean_over_the_batch_whatever_the_number_of_classes() -> None:
    once, thrice = (
        softened_kl(STUDENT, TEACHER, 2.0),
        softened_kl(*(x.repeat(3, 1) for x in (STUDENT, TEACHER)), 2.0),
    )
    assert once.item() == pytest.approx(thrice.item())


def test_the_gradient_tends_to_hinton_s_limit_as_the_temperature_grows() -> None:
    # (centred z_s - centred z_t) / (N C), section 2.1 of the paper.
    student, teacher = logits(0).requires_grad_(), logits(1)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = (centred / student.numel()).detach()
    errors = []
    for temperature in (10.0, 100.0, 1000.0, 10000.0):
        (gradient,) = torch.autograd.grad(softened_kl(student, teacher, temperature), student)
        errors.append((gradient - limit).abs().max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(errors[-2] / 10, rel=0.1)  # as 1 / T
    assert errors[-1] < 1e-3 * limit.abs().max().item()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_the_textbook_s(temperature: float) -> None:
    # T * (q - p) / N at temperature T.
    student, teacher = logits(2).requires_grad_(), logits(3)
    (gradient,) = torch.autograd.grad(softened_kl(student, teacher, temperature), student)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    assert torch.allclose(gradient, temperature * (q - p) / len(student))


def test_the_square_keeps_the_gradient_s_size() -> None:
    def size(temperature: float) -> float:
        student = logits(4, scale=0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(softened_kl(student, logits(5, scale=0.5), temperature), student)
        return gradient.norm().item()

    assert size(40.0) == pytest.approx(size(4.0), rel=0.1)


def test_certain_logits_stay_finite() -> None:
    student = torch.tensor([[500.0, -500.0], [0.0, 900.0]], requires_grad=True)
    value = softened_kl(student, -student.detach(), 1.0)
    value.backward()
    assert student.grad is not None
    assert value.item() == pytest.approx((1000 + 900) / 2)
    assert torch.isfinite(student.grad).all()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: student \[2, 3\], teacher \[2, 4\]"):
        softened_kl(STUDENT, torch.zeros(2, 4), 1.0)
    with pytest.raises(ValueError, match=r"student \[2, 3\], teacher \[1, 3\]"):
        softened_kl(STUDENT, TEACHER[:1], 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"Temperature must be positive, got {temperature}"):
        softened_kl(STUDENT, TEACHER, temperature)
    with pytest.raises(DecantError, match=r"loss\.temperature: must be greater than 0"):
        validate({"kind": "temperature", "temperature": temperature}, SoftTargets, "loss")


# --- mixing


@given(st.floats(0, 1), st.floats(0.5, 20))
def test_hard_and_soft_are_mixed_by_share(hard: float, temperature: float) -> None:
    student, teacher = STUDENT.double(), TEACHER.double()  # T^2 would magnify what single precision rounds
    cross_entropy = -torch.stack([student.log_softmax(1)[i, label] for i, label in enumerate(LABELS)]).mean()
    expected = hard * cross_entropy.item() + (1 - hard) * naive_kl(student, teacher, temperature)
    loss = Temperature(temperature=temperature, hard=hard)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_softmax_is_temperature_one() -> None:
    assert torch.equal(
        Softmax(hard=0.3)(STUDENT, TEACHER, LABELS),
        Temperature(temperature=1.0, hard=0.3)(STUDENT, TEACHER, LABELS),
    )


def test_all_hard_is_cross_entropy_and_all_soft_ignores_the_labels() -> None:
    hard, soft = Temperature(hard=1.0), Temperature(hard=0.0)
    assert torch.equal(hard(STUDENT, TEACHER, LABELS), F.cross_entropy(STUDENT, LABELS))
    assert torch.equal(soft(STUDENT, TEACHER, LABELS), soft(STUDENT, TEACHER, 1 - LABELS.clamp(max=1)))


def test_a_certain_teacher_says_no_more_than_the_labels() -> None:
    # Ba and Caruana's remark: a certain teacher's probabilities are the hard labels over again.
    certain = 200.0 * F.one_hot(LABELS, 3).float()
    soft = Softmax()(STUDENT, certain, LABELS)
    assert soft.item() == pytest.approx(F.cross_entropy(STUDENT, LABELS).item(), rel=1e-6)


@pytest.mark.parametrize("hard", [-0.1, 1.1])
def test_a_share_is_a_fraction(hard: float) -> None:
    with pytest.raises(DecantError, match=r"loss\.hard: must be (less|greater) than or equal to"):
        validate({"kind": "softmax", "hard": hard}, SoftTargets, "loss")


# --- against a teacher


def test_the_teacher_answers_the_batch_that_the_student_saw() -> None:
    teacher = nn.Linear(4, 3)
    inputs = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    student = STUDENT.clone().requires_grad_()
    value = against_teacher(Softmax(hard=0.5), teacher)((inputs,), student, LABELS)
    assert torch.equal(value, Softmax(hard=0.5)(student, teacher(inputs), LABELS))
    value.backward()
    assert student.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_answers_in_eval_mode_and_stays_as_it_was() -> None:
    teacher = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    labels = torch.arange(8) % 3
    loss = against_teacher(Softmax(), teacher)
    quiet = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    assert loss((inputs,), inputs, labels) == softened_kl(inputs, quiet(inputs).detach(), 1.0)
    assert loss((inputs,), inputs, labels) == loss((inputs,), inputs, labels)
    assert teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


# --- outputs as numbers

FOUR = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean 3, variance (4 + 1 + 0 + 9) / 4


def test_the_squared_error_of_four_numbers_by_hand() -> None:
    moved = FOUR + torch.tensor([[0.5, 0.0], [0.0, -1.0]])
    assert squared_error(moved, FOUR).item() == pytest.approx((0.25 + 1) / 4 / 3.5)
    assert squared_error(FOUR, FOUR).item() == 0


def test_outputs_that_do_not_vary_are_compared_with_their_size() -> None:
    same = torch.full((2, 2), 3.0)
    assert squared_error(same + 0.3, same).item() == pytest.approx(0.09 / 9)
    assert squared_error(torch.full((2, 2), 0.5), torch.zeros(2, 2)).item() == 0.25
    assert squared_error(torch.tensor([[2.5]]), torch.tensor([[2.0]])).item() == pytest.approx(0.0625)


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e6]))
def test_the_squared_error_is_that_of_a_loop_and_has_no_unit(seed: int, unit: float) -> None:
    found, expected = logits(seed), logits(seed + 1)
    flat = expected.flatten().tolist()
    mean = math.fsum(flat) / len(flat)
    by_hand = math.fsum((f - e) ** 2 for f, e in zip(found.flatten().tolist(), flat, strict=True))
    by_hand /= math.fsum((e - mean) ** 2 for e in flat)
    assert squared_error(found * unit, expected * unit).item() == pytest.approx(by_hand)


def test_its_gradient_is_that_of_the_mean_square() -> None:
    student = STUDENT.clone().requires_grad_()
    Outputs()(student, TEACHER, None).backward()
    expected = 2 * (STUDENT - TEACHER) / TEACHER.numel() / TEACHER.var(correction=0)
    assert student.grad is not None
    assert torch.allclose(student.grad, expected)


def test_what_is_no_number_stays_none() -> None:
    for wrong in (math.nan, math.inf):
        assert not math.isfinite(squared_error(torch.full((2, 2), wrong), FOUR))
        assert not math.isfinite(squared_error(FOUR, torch.full((2, 2), wrong)))


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found \[2, 2\], expected \[2, 3\]"):
        squared_error(FOUR, TEACHER)


def test_networks_with_classes_are_compared_as_probabilities() -> None:
    moved = TEACHER + 7  # the same probabilities, and other numbers
    assert (
        distance(("a", "b", "c"))(moved, TEACHER) == divergence(moved, TEACHER) == pytest.approx(0, abs=1e-12)
    )
    assert distance(())(moved, TEACHER) == pytest.approx(49 / TEACHER.var(correction=0).item())


def examples(labels: Tensor | None) -> Examples:
    return Examples(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels, ())


def test_without_labels_the_outputs_of_the_teacher_are_learned() -> None:
    teacher, inputs = nn.Linear(4, 3), (torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),)
    expected = squared_error(STUDENT, teacher(*inputs))
    for classes in (0, 3):
        loss = loss_of(None, Training(epochs=1), teacher, examples(None), classes)
        assert loss(inputs, STUDENT, None) == expected


def test_with_labels_they_are_learned_as_ever() -> None:
    loss = loss_of(None, Training(epochs=1), nn.Linear(4, 3), examples(LABELS), 3)
    assert loss((), STUDENT, LABELS) == F.cross_entropy(STUDENT, LABELS)


def test_soft_targets_without_labels_are_all_of_the_loss() -> None:
    teacher, inputs = nn.Linear(4, 3), (torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),)
    loss = loss_of(Softmax(), Training(epochs=1), teacher, examples(None), 3)
    assert loss(inputs, STUDENT, None) == softened_kl(STUDENT, teacher(*inputs), 1.0)


@pytest.mark.parametrize("soft", [Softmax(), Temperature(hard=0)])
def test_a_loss_that_needs_classes_is_refused_where_there_are_none(soft: SoftTargets) -> None:
    with pytest.raises(
        DecantError, match=rf"loss\.kind: {soft.kind} compares prob.*; take loss: {{kind: outputs}}"
    ):
        loss_of(soft, Training(epochs=1), nn.Identity(), examples(None), 0)


@pytest.mark.parametrize("soft", [Softmax(hard=0.5), Temperature(), Outputs(hard=1)])
def test_a_loss_that_needs_labels_is_refused_where_there_are_none(soft: SoftTargets) -> None:
    with pytest.raises(DecantError, match=r"loss\.hard: .* is against labels, .*; take hard: 0"):
        loss_of(soft, Training(epochs=1), nn.Identity(), examples(None), 3)
