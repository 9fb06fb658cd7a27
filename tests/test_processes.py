"""One training in several processes: the curve of one, and a sentence where one is not as the others."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.errors import DecantError
from decant.examples import Examples
from decant.finetune.params import FinetuneParams
from decant.networks import processes as module
from decant.networks.devices import find, moved, take_
from decant.networks.processes import Processes, shares
from decant.schema import mistakes
from decant.training.fit import _check_shares
from decant.training.recipe import Training
from decant.training.spread import Spread
from tasks.pipeline.processes import asked, without
from tests.in_processes import beside, curves
from tests.test_devices import GPU, gpu_test

TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 16}


# --- what each has


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [5, 6, 16, 17])
def test_shares_are_all_rows_once_and_none_is_two_larger(count: int, rows: int) -> None:
    own = [range(rows)[Processes(rank, count).of(rows)] for rank in range(count)]
    assert [row for each in own for row in each] == list(range(rows))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    answered = [range(rows)[shares(rows, 4, Processes(rank, count))] for rank in range(count)]
    assert [row for each in answered for row in each] == list(range(rows))
    assert all(each.start % 4 == 0 for each in answered if each)


class Halves(Processes):
    """Two processes whose other one has what a test says."""

    def __init__(self, rank: int, others: list[Tensor]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "others", others)

    def stacked(self, numbers: Tensor) -> Tensor:
        other = self.others.pop(0)  # type: ignore[attr-defined]
        return torch.stack([numbers, other] if self.rank == 0 else [other, numbers])

    def summed(self, numbers: Tensor) -> Tensor:
        return numbers + self.others.pop(0)  # type: ignore[attr-defined]


def statistics(part: Tensor) -> Tensor:
    variance, mean = torch.var_mean(part, [0, 2], correction=0)
    return torch.cat([mean, variance, torch.tensor([float(part.numel() / part.shape[1])])])


def test_a_batch_norm_over_shares_is_torchs_over_the_batch() -> None:
    """By its outputs, running statistics and gradients; the parts differ in size and lie far apart."""
    draws = torch.Generator().manual_seed(1)
    whole = torch.randn(7, 3, 5, generator=draws, dtype=torch.double).float() + 20
    whole[4:] -= 35
    weights = torch.randn(whole.shape, generator=draws)
    expected, ours = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    for each in (expected, ours):
        nn.init.uniform_(each.weight, 0.5, 2.0, torch.Generator().manual_seed(3))
    whole.requires_grad_()
    outputs = expected(whole)
    (outputs * weights).sum().backward()
    own, other = whole.detach()[:4].clone().requires_grad_(), whole.detach()[4:]
    standard = (outputs.detach() - expected.bias.detach()[:, None]) / expected.weight.detach()[:, None]
    theirs = torch.stack([weights[4:].sum([0, 2]), (weights[4:] * standard[4:]).sum([0, 2])])
    spread = Spread(Halves(0, [statistics(other), theirs]), 7)
    with spread.drawing(1, torch.device("cpu")):
        found = ours(own)
    (found * weights[:4]).sum().backward()
    assert whole.grad is not None and own.grad is not None
    torch.testing.assert_close(found, outputs[:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.grad, whole.grad[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, expected.running_mean)
    torch.testing.assert_close(ours.running_var, expected.running_var)
    assert F.batch_norm.__module__ == "torch.nn.functional"


@pytest.mark.parametrize("last", [False, True])
def test_dropout_draws_for_the_whole_batch_and_takes_its_rows(last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    images = torch.ones(6, 4, 3, 3).contiguous(memory_format=form)
    heads = torch.ones(12, 5)  # two rows of numbers for each example, as heads of attention have
    torch.manual_seed(11)
    expected = F.dropout(images), F.dropout(heads), F.dropout2d(images)
    for rank, (rows, of_heads) in enumerate([(slice(0, 3), slice(0, 6)), (slice(3, 6), slice(6, 12))]):
        spread = Spread(Processes(rank, 2), 6)
        with spread.drawing(11, torch.device("cpu")):
            noise = torch.rand(3)  # of each process's own: what it draws moves nothing of the others
            found = F.dropout(images[rows]), F.dropout(heads[of_heads]), F.dropout2d(images[rows])
        assert all(map(torch.equal, found, (expected[0][rows], expected[1][of_heads], expected[2][rows])))
        assert noise.shape == (3,)


# --- what a recipe says


@pytest.mark.parametrize(
    ("changes", "device", "told"),
    [
        (
            {"processes": 32},
            "cpu",
            "training: batch_size: 16 images have no share for each of 32 processes: take fewer, or larger "
            "batches",
        ),
        (
            {"processes": 2, "compile": True},
            "cpu",
            "training: compile: true and several processes do not go together, as batch norms wait for the "
            "others in the middle of a pass: leave one out",
        ),
        (
            {"processes": 2},
            "cuda:1",
            "top level: training.processes: 2 need a GPU each, and cuda:1 is one: take cuda, the first for "
            "the first of them",
        ),
    ],
)
def test_recipes_that_do_not_go_together_are_refused(changes: dict[str, Any], device: str, told: str) -> None:
    block = {"op": "finetune", "from": "p", "training": TRAINING | changes, "device": device}
    assert mistakes(block, FinetuneParams) == [told]


def test_the_most_that_a_training_asks_for_is_found_and_left_out_of_what_is_resumed() -> None:
    block = {"op": "finetune", "from": "p", "training": TRAINING | {"processes": 3}}
    recipe = FinetuneParams.model_validate(block)
    assert asked(recipe) == 3
    assert asked(FinetuneParams.model_validate(block | {"training": TRAINING})) == 1
    written = recipe.model_dump(mode="json", by_alias=True)
    one = FinetuneParams.model_validate(block | {"training": TRAINING}).model_dump(mode="json", by_alias=True)
    assert written != one
    assert without(written, "processes") == one


def test_another_number_than_was_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.device("cpu")
    told = r"the recipe asks for 2, and 1 were started; start 2 \(torchrun --nproc-per-node 2"
    with pytest.raises(DecantError, match=told):
        module.together(2, place)
    monkeypatch.setenv(module.COUNT, "2")
    with pytest.raises(DecantError, match=r"asks for 1, and 2 were started; .* or have the recipe say 2"):
        module.together(1, place)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', and torchrun puts a number there: start"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1', and torchrun puts a number there"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, and of 2 processes the last one has 1"),
    ],
)
def test_variables_that_are_no_launchers_are_told(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DecantError, match=told):
        module.together(2, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(DecantError, match="LOCAL_RANK is 'first'"):
        find("cuda")


def test_a_batch_that_is_too_small_for_all_is_told() -> None:
    pictures = Examples(torch.zeros(33, 1, 2, 2, dtype=torch.uint8), None, ())
    recipe = Training(epochs=1, batch_size=16, accumulate=3)
    with pytest.raises(DecantError, match="a batch of 1 has no share for each of 2; take fewer, or larger"):
        _check_shares(pictures, recipe, Processes(0, 2))
    _check_shares(pictures, Training(epochs=1, batch_size=16, accumulate=2), Processes(0, 2))


def test_processes_that_are_not_alike_are_told_apart() -> None:
    facts = [{"torch": "2.13.0", "threads": "2"}, {"torch": "2.14.1", "threads": "2"}]
    told = "they differ in torch: 2.13.0 in process 0, 2.14.1 in process 1; start all of them with the same"
    with pytest.raises(DecantError, match=told):
        module._check_facts(facts)
    module._check_facts([facts[0]] * 3)


# --- two processes


def run(
    folder: Path,
    *cases: str,
    of_second: dict[str, str] | None = None,
    of_both: dict[str, str] | None = None,
) -> tuple[list[int], list[str], dict[str, Any]]:
    """Return how two processes ended, what they said, and what the first one wrote."""
    both = beside(str(folder / "found.json"), *cases, of_second=of_second, of_both=of_both)
    said = [process.communicate(timeout=120)[1] for process in both]
    file = folder / "found.json"
    return [each.returncode for each in both], said, json.loads(file.read_text()) if file.exists() else {}


def check_alike(found: dict[str, Any], expected: dict[str, Any], rel: float = 2e-6) -> None:
    for case, one in expected.items():
        other = found[case]
        assert other["total"] == pytest.approx(one["total"], rel=rel), case
        for row, right in zip(other["curve"], one["curve"], strict=True):
            assert row.pop("processes") == 2
            assert row == pytest.approx(right, rel=rel, abs=1e-7), case


WAYS = ("features", "cache", "masks", "rigl", "steps", "clips", "outputs")


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one_in_every_way_of_training(tmp_path: Path) -> None:
    codes, said, found = run(tmp_path, "dropout", "texts", *WAYS)
    assert codes == [0, 0], said
    check_alike(found, curves("dropout", "texts"))
    check_alike(found, curves(*WAYS), rel=2e-5)


def test_any_bit_of_tensors_is_seen() -> None:
    one = [torch.zeros(3), torch.tensor(True), torch.zeros(2, 2, dtype=torch.bfloat16).T]
    assert module.sum_of_bits(one) == module.sum_of_bits([each.clone() for each in one])
    assert module.sum_of_bits(one) != module.sum_of_bits([torch.tensor([0.0, 0.0, -0.0]), *one[1:]])
    assert 0 <= module.sum_of_bits(one) < 2**56


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "told"),
    [("OTHER_WEIGHTS", "the weights that they begin with"), ("OTHER_EXAMPLES", "the examples")],
)
def test_processes_that_begin_otherwise_are_refused(changed: str, told: str, tmp_path: Path) -> None:
    codes, said, _ = run(tmp_path, "dropout", of_second={changed: "1"})
    assert codes == [1, 1], said
    assert all(f"they differ in {told} (a sum of their bits): " in each for each in said)


@pytest.mark.slow
def test_another_version_is_refused_by_both(tmp_path: Path) -> None:
    codes, said, _ = run(tmp_path, "dropout", of_second={"PRETENDED_TORCH": "2.12.0"})
    assert codes == [1, 1]
    assert all("they differ in torch" in each and "2.12.0 in process 1" in each for each in said)


# --- on GPUs


def test_sums_go_over_nccl_between_gpus_alone() -> None:
    assert take_(torch.device("cpu")) == "gloo"
    assert take_(torch.device("meta:0")) == "cpu:gloo,meta:nccl"  # each device has its own


@gpu_test
def test_a_group_of_one_gpu_sums_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process can only have sums of itself; more need a GPU each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    device = find(GPU)
    module._join(device, {"recipe": "x"})
    try:
        for there in (device, torch.device("cpu")):
            numbers = moved(torch.arange(6.0), there)
            torch.distributed.all_reduce(numbers)
            assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
    finally:
        torch.distributed.destroy_process_group()


@gpu_test
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU, and NCCL wants one for each")
def test_two_gpus_have_the_curve_of_one(tmp_path: Path) -> None:
    codes, said, found = run(tmp_path, "masks", "steps", of_both={"TRAINED_ON": GPU})
    assert codes == [0, 0], said
    check_alike(found, curves("masks", "steps", device=GPU), rel=1e-3)
