"""A model is read only where it is what params.yaml describes, made from the models that lie beside it."""

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load, save
from decant.checkpoints.lineage import read_lineage
from decant.errors import DecantError
from decant.networks.architectures import Mlp, build
from tasks.evaluate.__main__ import main as evaluate
from tasks.pipeline.lineages import MODELS, chain, check_lineages
from tasks.pipeline.models import load_model, load_models
from tasks.pipeline.step import training_images
from tasks.prune.__main__ import main as prune
from tests import homes
from tests.imports import ROOT

BLOCKS: dict[str, Any] = {
    "pruned": {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.5},
    },
    "int8": {"op": "quantize", "from": "pruned", "scheme": {"kind": "integer", "bits": 8}},
}
PARAMS: dict[str, Any] = {
    "seed": 1,
    "threads": {"teacher": 1, "prune": 1, "quantize": 1, "evaluate": 1},
    "teacher": {"architecture": {"kind": "mlp", "hidden": [4]}, "training": {"epochs": 2}},
    "models": BLOCKS,
}


def network(seed: int) -> Checkpoint:
    recipe = Mlp(hidden=(4,))
    return Checkpoint(recipe, (1, 4, 4), tuple("0123456789"), build(recipe, (1, 4, 4), 10, seed).eval())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder with a chain of three models that fit params.yaml."""
    with homes.home(tmp_path, homes.noise((1, 4, 4), train=20, validation=20, test=20), PARAMS) as folder:
        for seed, name in enumerate(("teacher", *BLOCKS)):
            homes.put_model(name, network(seed))
        yield folder


def rewrite(change: Callable[[dict[str, Any]], object]) -> None:
    """Change params.yaml while the models stay what they are."""
    params = copy.deepcopy(PARAMS)
    change(params)
    homes.write_params(params)


def test_models_that_fit_are_read(home: Path) -> None:
    found = load_models("teacher", "pruned", "int8", with_parents=True)
    assert list(found) == ["teacher", "pruned", "int8"]
    assert [step["name"] for step in found["int8"].lineage] == ["teacher", "pruned", "int8"]
    evaluate("teacher")
    evaluate("int8")
    assert Path("metrics/int8.json").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda params: params["models"]["int8"]["scheme"].update(bits=5),
            "expected scheme.bits of int8 to be 5, found 8",
        ),
        (
            lambda params: params["models"]["int8"]["scheme"].update(group=32),
            "expected scheme.group of int8 to be 32, found nothing",
        ),
        (
            lambda params: params["models"]["int8"]["scheme"].pop("bits"),
            "expected scheme.bits of int8 to be nothing, found 8",
        ),
        (
            lambda params: params["models"]["pruned"]["budget"].update(sparsity=0.6),
            "expected budget.sparsity of pruned to be 0.6, found 0.5",
        ),
        (
            lambda params: params["teacher"]["architecture"].update(hidden=[4, 4]),
            "expected architecture.hidden of teacher to be [4, 4], found [4]",
        ),
        (lambda params: params["threads"].update(quantize=2), "expected threads of int8 to be 2, found 1"),
        (lambda params: params.update(seed=2), "expected seed of teacher to be"),
        (
            lambda params: params["models"]["int8"].update({"from": "teacher"}),
            "expected the steps teacher, int8, found teacher, pruned, int8",
        ),
        (
            lambda params: params["models"]["int8"].update(op="clip"),
            'expected op of int8 to be "clip", found "quantize"',
        ),
    ],
)
def test_a_model_of_another_recipe_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, home: Path
) -> None:
    def both(params: dict[str, Any]) -> None:
        params["threads"]["clip"] = 1
        change(params)

    rewrite(both)
    with pytest.raises(DecantError) as told:
        load_model("int8")
    assert f"models/int8 is not the model that params.yaml describes: {words}" in str(told.value)
    assert str(told.value).endswith("; run `dvc repro -f -s compress@int8`, then `dvc repro`")


def test_a_model_that_params_yaml_does_not_know_is_told_with_the_nearest_name(home: Path) -> None:
    with pytest.raises(DecantError, match=r"^params\.yaml has no model 'prune'; did you mean 'pruned'\?$"):
        load_models("teacher", "prune")


def test_the_stages_that_read_a_model_refuse_another_one(home: Path) -> None:
    """As a run cache restores it that pairs a recipe with what another one made."""
    evaluate("teacher")
    rewrite(lambda params: params["models"]["int8"]["scheme"].update(bits=5))
    with pytest.raises(DecantError, match=r"models/int8 is not .* scheme\.bits of int8 to be 5, found 8"):
        evaluate("int8")
    rewrite(lambda params: params["teacher"]["training"].update(epochs=3))
    with pytest.raises(DecantError, match=r"models/teacher is not .* to be 3, found 2; .* -f -s teacher`"):
        evaluate("teacher")
    with pytest.raises(DecantError, match=r"models/teacher is not .* training\.epochs of teacher to be 3"):
        prune("pruned")
    assert not Path("metrics/int8.json").exists()


def test_measuring_depends_on_all_that_a_lineage_is_compared_with() -> None:
    """Where only its bytes counted, a restored model of another recipe would not be read again."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    teacher, model = stages["evaluate-teacher"], stages["evaluate"]["do"]
    assert {"seed", "teacher", "threads.teacher"} <= set(teacher["params"])
    assert {"seed", "models.${key}", "threads.${item.op}"} <= set(model["params"])
    assert {"metrics/${item.from}.json", "models/${item.from}"} <= set(model["deps"])


def test_a_model_made_from_another_parent_is_refused(home: Path) -> None:
    homes.put_model("pruned", network(7))  # the same recipe, another result
    load_models("teacher", "int8")  # its parent may be an old one, where a stage does not depend on it
    with pytest.raises(DecantError, match=r"models/int8 is not .* made from another models/pruned than lies"):
        load_models("teacher", "int8", with_parents=True)
    with pytest.raises(DecantError, match=r"models/int8 is not .* another models/pruned .*@int8`, then"):
        evaluate("int8")
    homes.put_model("teacher", network(8))
    with pytest.raises(DecantError, match=r"models/pruned is not .* made from another models/teacher"):
        load_models("teacher", "pruned")


def test_a_model_in_another_s_folder_is_refused(home: Path) -> None:
    shutil.rmtree(MODELS / "int8")
    shutil.copytree(MODELS / "pruned", MODELS / "int8")
    with pytest.raises(DecantError, match=r"steps teacher, pruned, int8, found teacher, pruned; run"):
        load_model("int8")


def test_a_model_whose_lineage_says_nothing_is_refused(home: Path) -> None:
    save(replace(network(0), lineage=()), MODELS / "teacher")
    with pytest.raises(DecantError, match=r"models/teacher is not .* the steps teacher, found none; run"):
        load_model("teacher")
    assert load(MODELS / "teacher").lineage == ()  # the library alone knows no params.yaml


def test_a_parent_trained_on_other_images_is_refused(home: Path) -> None:
    found = {"teacher": read_lineage(MODELS / "teacher")}
    check_lineages(found, PARAMS)
    with pytest.raises(DecantError, match="teacher was made of other training images than lie here"):
        check_lineages(found, PARAMS, data="sha256:0")


def test_what_params_yaml_does_not_describe_is_named(home: Path) -> None:
    shutil.copytree(MODELS / "pruned", MODELS / "nobody")
    with pytest.raises(
        DecantError, match=r"^params\.yaml has no model 'nobody'; known are int8, pruned, teac"
    ):
        load_model("nobody")
    rewrite(lambda params: params["models"]["pruned"].update({"from": "int8"}))
    with pytest.raises(DecantError, match="int8 descends from itself"):
        load_model("int8")
    assert chain("int8", PARAMS) == ["teacher", "pruned", "int8"]


def test_a_stage_writes_the_seals_of_what_it_read(home: Path) -> None:
    prune("pruned")
    (_, own) = load_model("pruned").lineage
    assert own["params"] == BLOCKS["pruned"]
    assert own["parents"] == {"teacher": read_lineage(MODELS / "teacher").seal}
    assert own["data"] == training_images()
