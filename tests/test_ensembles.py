"""Soft targets of several teachers: which mean, of whom, and what is told before anything is trained."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.lineage import read_lineage
from decant.costs.divergence import softened_kl
from decant.distill import distill
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.networks.architectures import Mlp, build
from decant.quantize import quantize
from decant.targets import CLASSES, Labels, Numbers, Tokens
from decant.training.ensemble import Mean
from decant.training.logit_losses import Outputs, Temperature
from decant.training.run import Run
from decant.training.teaching import teaching
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model, load_seeds
from tasks.report.page.lineage import _with_teacher
from tests import homes
from tests.stages import compressed, measured
from tests.test_stability import SHAPE, network
from tests.test_students import FAMILY, SPLITS, TRAINING, distilled, parent
from tests.test_validate import chain, complaints

STILL = TRAINING | {"batch_size": 96, "optimizer": {"kind": "sgd", "learning_rate": 1e-12}, "average": 0.0}
BLOCK: dict[str, Any] = {
    "student": {"kind": "mlp", "hidden": [4]},
    "loss": {"kind": "temperature", "hard": 0.0, "temperature": 2.0},
    "training": STILL,
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the mean


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (0.5, 2.0, 1.5)])
@pytest.mark.parametrize("target", [CLASSES, Labels(names=("a", "b", "c", "d")), Tokens(vocabulary=2)])
def test_the_mean_of_probabilities_is_that_of_naive_loops(weights: Any, target: Any) -> None:
    outputs = [drawn(5, 4, seed=seed) for seed in range(3)]
    found = Mean(weights, "probabilities")(outputs, target, places=2)
    shares = [each / sum(weights) for each in weights] or [1 / 3] * 3
    for row in range(5):
        for group in ([0, 1], [2, 3]) if isinstance(target, Tokens) else ([0, 1, 2, 3],):
            if isinstance(target, Labels):
                said = [z[row].double().sigmoid() for z in outputs]
                back = found[row].double().sigmoid()
            else:
                said = [z[row, group].double().softmax(0) for z in outputs]
                back = found[row, group].double().softmax(0)
            expected = sum(share * each for share, each in zip(shares, said, strict=True))
            assert torch.allclose(back, torch.as_tensor(expected), atol=1e-6)


def test_the_mean_of_logits_is_weighed_and_weights_count_by_their_ratios() -> None:
    outputs = [drawn(5, 4, seed=seed) for seed in range(3)]
    expected = (outputs[0] + 2 * outputs[1] + 5 * outputs[2]) / 8
    for weights in ((1.0, 2.0, 5.0), (10.0, 20.0, 50.0)):
        assert torch.allclose(Mean(weights)(outputs, CLASSES), expected, atol=1e-6)
    assert torch.equal(Mean((7.0, 7.0, 7.0))(outputs, CLASSES), torch.stack(outputs).mean(0))


def test_probabilities_of_what_is_certain_stay_finite() -> None:
    certain = [torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])]
    for target in (CLASSES, Labels(names=("a", "b"))):
        found = Mean((), "probabilities")(certain, target)
        assert bool(found.isfinite().all())
        assert found[0, 0].item() == pytest.approx(found[0, 1].item())


@pytest.mark.parametrize("target", [CLASSES, Labels(names=("a", "b", "c", "d")), Tokens(vocabulary=2)])
def test_teachers_that_say_the_same_have_their_own_logits_for_a_mean(target: Any) -> None:
    z = drawn(5, 4) - 7
    for of in ("logits", "probabilities"):
        assert torch.allclose(Mean((1.0, 3.0), of)([z, z], target, places=2), z, atol=1e-5)


def test_a_teacher_of_other_outputs_is_refused() -> None:
    with pytest.raises(
        DecantError, match=r"ensemble: teacher 3 answers with 5 numbers .* first one with 4; ta"
    ):
        Mean()([drawn(2, 4), drawn(2, 4), drawn(2, 5)], CLASSES)


def test_next_tokens_are_averaged_place_by_place() -> None:
    """As a batch has them: two texts of three places, of a vocabulary of four."""

    class Says(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.register_buffer("table", drawn(4, 4, seed=seed))

        def forward(self, ids: Tensor) -> Tensor:
            return self.get_buffer("table")[ids]

    ids, labels = torch.tensor([[0, 1, 2], [3, 2, 1]]), torch.tensor([[1, 2, -1], [2, 1, 0]])
    outputs, both = drawn(2, 12, seed=9), (Says(1), Says(2))
    mean = Mean((1.0, 3.0), "probabilities")
    lesson = teaching(Temperature(hard=0.0, temperature=1.0), both, target=Tokens(vocabulary=4), mean=mean)
    found = lesson((ids,), outputs, labels)
    expected = []
    for row, place in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        p = sum(w * s(ids)[row, place].softmax(0) for w, s in zip((0.25, 0.75), both, strict=True))
        log_q = outputs[row, 4 * place : 4 * place + 4].log_softmax(0)
        expected.append((p * (torch.as_tensor(p).log() - log_q)).sum())
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


# --- who answers


def three() -> dict[str, Checkpoint]:
    exact = parent(Mlp(hidden=(8,)), seed=7)
    block = {"scheme": {"kind": "integer", "bits": 4}, "activations": {"bits": 4}, "images": 48}
    return {"few-bits": quantize(exact, block, SPLITS).model, "other": parent(seed=9)}


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_any_number_of_teachers_also_quantized_ones_are_matched_by_their_mean(of: Any, cache: bool) -> None:
    one, others = parent(), three()
    asked = {"teachers": {"few-bits": 2.0, "other": 0.5, "parent": 1.5}, "mean": of}
    result = distill(one, BLOCK | {"ensemble": asked, "cache": cache}, SPLITS, others=others)
    images = SPLITS.train.images.float() / 255
    outputs = [each.module(images) for each in (one, others["few-bits"], others["other"])]
    expected = Mean((1.5, 2.0, 0.5), of)(outputs, CLASSES)
    module = copy.deepcopy(result.model.module).train()
    loss = softened_kl(module(images), expected, 2.0).item()
    assert result.curve[-1]["loss"] == pytest.approx(loss, rel=1e-3)


def test_seeds_of_a_teacher_answer_with_its_weight() -> None:
    one, more = parent(), [parent(seed=seed) for seed in (5, 6)]
    asked = {"teachers": {"other": 3.0}, "seeds": True}
    result = distill(
        one, BLOCK | {"ensemble": asked}, SPLITS, others={"parent": [one, more[0]], "other": more[1]}
    )
    images = SPLITS.train.images.float() / 255
    outputs = [each.module(images) for each in (one, *more)]
    expected = (outputs[0] + outputs[1] + 3 * outputs[2]) / 5
    module = copy.deepcopy(result.model.module).train()
    assert result.curve[-1]["loss"] == pytest.approx(
        softened_kl(module(images), expected, 2.0).item(), rel=1e-3
    )


@pytest.mark.parametrize(
    ("ensemble", "words"),
    [
        (["othr"], "ensemble: there is no model 'othr'; did you mean 'other'?"),
        (["parent"], "ensemble: there is one teacher alone; start from a student of it"),
        (["same", "other"], "ensemble: there is one teacher alone; start from a student of it"),
        (["wide"], "ensemble: the teachers have other classes or inputs; take those that answer the same"),
        (["large"], "ensemble: the teachers have other classes or inputs; take those that answer the same"),
        (["sick"], "holds NaN or infinity, so nothing can be learned from it"),
    ],
)
def test_what_is_no_ensemble_is_refused(ensemble: Any, words: str) -> None:
    one = parent()
    sick = Checkpoint(
        Mlp(hidden=(8,)), (1, 8, 8), one.classes, build(Mlp(hidden=(8,)), (1, 8, 8), 3, 1).eval()
    )
    with torch.no_grad():
        next(sick.module.parameters()).fill_(torch.nan)
    others = {
        "other": parent(seed=3),
        "same": one,
        "wide": Checkpoint(FAMILY, (1, 8, 8), tuple("abcd"), build(FAMILY, (1, 8, 8), 4, 1).eval()),
        "large": Checkpoint(FAMILY, (1, 9, 9), one.classes, build(FAMILY, (1, 9, 9), 3, 1).eval()),
        "sick": sick,
    }
    with pytest.raises(DecantError, match=re.escape(words)):
        distill(one, BLOCK | {"ensemble": ensemble}, SPLITS, others=others)


def test_numbers_have_no_probabilities() -> None:
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    examples = Examples(
        Rows({"x": inputs}), inputs.sum(1, keepdim=True), (), Numbers(names=("y",), scale=(1.0,))
    )

    def of(seed: int) -> Checkpoint:
        torch.manual_seed(seed)
        return Checkpoint(None, examples.shape, (), nn.Sequential(nn.Linear(3, 1)).eval())

    block = BLOCK | {"loss": {"kind": "outputs"}, "training": TRAINING | {"batch_size": 24}}
    block |= {"ensemble": {"teachers": ["b"], "mean": "probabilities"}}
    with pytest.raises(
        DecantError, match=r"ensemble\.mean: these outputs are no logits, so there are no prob"
    ):
        distill(of(1), block, Splits(examples, examples), others={"b": of(2)})
    lesson = teaching(Outputs(), (of(1).module, of(2).module), target=examples.target, mean=Mean((1.0, 3.0)))
    assert lesson((inputs,), (of(1).module(inputs) + 3 * of(2).module(inputs)) / 4, None).item() < 1e-10


# --- in the pipeline


SOFT: dict[str, Any] = {
    "op": "distill",
    "student": {"kind": "mlp", "hidden": [3]},
    "loss": {"kind": "softmax"},
    "training": {"epochs": 1, "batch_size": 10},
}
PARAMS: dict[str, Any] = {
    "seed": 1,
    "threads": {"teacher": 1, "distill": 1, "quantize": 1, "evaluate": 1},
    "teacher": {"architecture": {"kind": "mlp", "hidden": [4]}, "training": {"epochs": 2}},
    "models": {
        "assistant": SOFT | {"from": "teacher", "seeds": 2},
        "few-bits": {"op": "quantize", "from": "assistant", "scheme": {"kind": "integer", "bits": 4}},
        "pupil": SOFT | {"from": "few-bits", "ensemble": ["teacher", "assistant"]},
        "of-all": SOFT | {"from": "few-bits", "ensemble": {"teachers": {"assistant": 2.0}, "seeds": True}},
    },
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder with a teacher."""
    with homes.home(tmp_path, homes.noise(SHAPE, train=60, validation=20, test=60), PARAMS) as folder:
        homes.put_model("teacher", network(0))
        yield folder


def test_teachers_of_a_chain_are_read_and_the_lineage_names_their_seals(home: Path) -> None:
    compressed("assistant", "few-bits", "pupil", "of-all")
    seal = {name: read_lineage(MODELS / name).seal for name in ("teacher", "assistant", "few-bits")}
    step = read_lineage(MODELS / "pupil").lineage.steps[-1]
    assert step["parents"] == {name: seal[name] for name in ("few-bits", "teacher", "assistant")}
    assert step["ensemble"] == ["teacher", "assistant"]
    step = read_lineage(MODELS / "of-all").lineage.steps[-1]
    other = read_lineage(MODELS / "assistant" / "seeds" / "2").seal
    assert step["parents"] == {**seal, "assistant/seeds/2": other}
    members = [load_model(name) for name in ("few-bits", "teacher", "assistant")]
    expected = distill(
        members[0],
        {key: value for key, value in PARAMS["models"]["pupil"].items() if key not in ("op", "from")}
        | {"ensemble": ["teacher", "assistant"]},
        splits.read_splits(),
        teacher=members[1],
        others={"assistant": members[2]},
        run=Run("pupil", read_lineage(MODELS / "pupil").lineage.steps[-1]["seed"]),
    )
    for name, tensor in load_model("pupil").module.state_dict().items():
        assert torch.equal(tensor, expected.model.module.state_dict()[name])
    assert len(load_seeds("assistant")) == 1
    measured("teacher", "pupil")


@pytest.mark.parametrize(
    ("ensemble", "words"),
    [
        (
            ["c"],
            "models.b.ensemble: from, a, does not descend from 'c', so nothing would wait for it; known are",
        ),
        (["teachr"], "does not descend from 'teachr', so nothing would wait for it; did you mean 'teacher'?"),
        ({"seeds": True}, "models.b.ensemble.seeds: none of its teachers is made by several seeds"),
        (["a"], "models.b.ensemble: from is the only teacher that it names; name more, or leave it out"),
        (["a", "a"], "models.b.ensemble: a twice: name each once"),
        ("a", "models.b.ensemble: must be true, a list of teachers, or a mapping, got 'a'"),
        ({"mean": "logits"}, "models.b.ensemble: names no teacher beside from"),
        ({"teachers": {"a": True}}, "models.b.ensemble.teachers: the weight of a must be a number, got True"),
        ({"teachers": {"a": -1}}, "models.b.ensemble.teachers.a: must be greater than 0"),
    ],
)
def test_validate_tells_it(ensemble: Any, words: str) -> None:
    found = complaints(chain(SOFT, SOFT | {"ensemble": ensemble}, SOFT))
    assert len(found) == 1 and words in found[0]


def test_the_page_draws_the_teacher_where_an_ensemble_has_it() -> None:
    with_it = (True, ["teacher", "a"], {"teachers": {"teacher": 1.0}}, {"teachers": ["teacher"]})
    assert all(map(_with_teacher, with_it))
    assert not any(map(_with_teacher, (None, False, ["a"], {"seeds": True}, {"teachers": ["a"]})))


def test_an_ensemble_of_two_is_what_it_was() -> None:
    """`true` and a list of one name are one recipe, to the bit."""
    one, other = parent(), parent(seed=7)
    true, named = (distilled(one, teacher=other, ensemble=each).model.module for each in (True, ["teacher"]))
    for name, tensor in true.state_dict().items():
        assert torch.equal(tensor, named.state_dict()[name])
