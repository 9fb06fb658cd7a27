"""Networks of the packages transformers and timm: what describes them, and what they become."""

import importlib.metadata
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import decant
from decant.adoption.weights import read_weights
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.export.deploy import check_same, deploy
from decant.export.runtime import open_session
from decant.inputs import TensorInput, drawn
from decant.networks.execution import predict
from decant.networks.packages import Timm, Transformers
from decant.prune.operation import prune
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from decant.schema import mistakes
from tasks.pipeline import networks, splits
from tasks.pipeline.models import load_model
from tasks.pipeline.step import compress
from tasks.prepare.__main__ import main as prepare
from tasks.teacher.__main__ import main as teach
from tasks.teacher.params import TeacherParams
from tasks.validate.__main__ import main as validate
from tests.homes import home
from tests.test_own_networks import arrays, changed, content

BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
TOKENS = {
    "input_ids": TensorInput(shape=(8,), dtype="int64", below=50),
    "attention_mask": TensorInput(shape=(8,), dtype="int64", at_least=0, below=2),
}
PICTURES = {"pixel_values": TensorInput(shape=(3, 32, 32))}


def transformers_of(config: dict[str, Any], class_: str = "", output: str = "") -> Transformers:
    """Return the network that a configuration describes."""
    described: dict[str, Any] = {"config": config, "class": class_}
    if output:
        described["output"] = output
    return Transformers.model_validate(described).described(Path())


def folder_of(tmp_path: Path, config: Any) -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Have packages be installed in these versions, and no others; nothing of them is imported."""
    versions = {"transformers": "5.1.0", "timm": "1.0.9"}

    def version(package: str) -> str:
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    networks.trusted.cache_clear()
    yield versions
    networks.trusted.cache_clear()


# --- what describes them


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        ({"kind": "transformers"}, "needs path, a folder with config.json, or config"),
        ({"kind": "transformers", "path": "../mine"}, "must be a folder below this one"),
        ({"kind": "transformers", "path": "/etc"}, "must be a folder below this one"),
        ({"kind": "transformers", "path": "a", "class": "os.system"}, "class"),
        ({"kind": "transformers", "path": "a", "output": ["logits", "a-b"]}, "output"),
        ({"kind": "transformers", "path": "a", "file": "b"}, "unknown key 'file'"),
        ({"kind": "timm"}, "name: is missing"),
        ({"kind": "timm", "name": "hf-hub:someone/net"}, "name"),
        ({"kind": "timm", "name": "local-dir:/etc"}, "name"),
        (
            {"kind": "timm", "name": "resnet18", "with": {"pretrained": True}},
            "pretrained would fetch or read",
        ),
        (
            {"kind": "timm", "name": "resnet18", "with": {"checkpoint_path": "x"}},
            "checkpoint_path would fetch",
        ),
    ],
)
def test_what_is_said_wrongly_of_a_package_is_told(architecture: dict[str, Any], sentence: str) -> None:
    section = {"architecture": architecture, "training": {"epochs": 1}}
    (line,) = [each for each in mistakes(section, TeacherParams) if sentence in each]
    assert line.startswith("architecture")


def test_a_missing_package_is_told_with_what_brings_it(there: dict[str, str]) -> None:
    there.clear()
    for package, build in (
        ("transformers", lambda: transformers_of(BERT)),
        ("timm", lambda: Timm.of("vgg11")),
    ):
        with pytest.raises(DecantError, match=rf"^{package} is not installed, .*: `pip install '?{package}"):
            build()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "config.json is no JSON"),
        ("[1]", "must hold a mapping, found list"),
        ('{"model_type": "bert", "x": NaN}', "NaN is no number"),
        ({"architectures": ["BertModel"]}, "has no model_type"),
        ({"model_type": "bert"}, "names no class in architectures; name it"),
        ({"model_type": "bert", "architectures": [3]}, "names no class in architectures; name it"),
        (BERT | {"quantization_config": {"bits": 4}}, "compressed already"),
    ],
)
def test_a_folder_that_describes_no_network_is_told(
    config: Any, sentence: str, there: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(DecantError, match=sentence):
        Transformers.of(folder_of(tmp_path, config))


def test_a_folder_says_what_builds_its_network(there: dict[str, str], tmp_path: Path) -> None:
    found = Transformers.of(folder_of(tmp_path, BERT), output="last_hidden_state")
    assert (found.class_, found.version, found.output) == ("BertModel", "5.1.0", ("last_hidden_state",))
    assert found.config == BERT
    assert Transformers.of(tmp_path, class_="BertForMaskedLM").class_ == "BertForMaskedLM"
    with pytest.raises(DecantError, match=r"No .*config\.json here"):
        Transformers.of(tmp_path / "none")


def test_a_model_is_built_by_the_version_that_it_was_made_with_alone(there: dict[str, str]) -> None:
    bert, net = transformers_of(BERT), Timm.of("resnet18", num_classes=3)
    assert bert.lend(bert.model_copy(update={"path": "elsewhere"})).version == "5.1.0"
    with pytest.raises(DecantError, match="built otherwise than resnet18 of timm"):
        net.lend(Timm.of("resnet18", num_classes=4))
    there |= {"transformers": "5.2.0", "timm": "1.1.0"}
    for saved, version in ((bert, "5.2.0"), (net, "1.1.0")):
        with pytest.raises(DecantError, match=rf"was saved with {saved.kind} .*, and {version} is installed"):
            saved.build(TOKENS)


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name, value in {"a": 1.0, "b": 2.0}.items():
        safetensors.torch.save_file({name: torch.full((2,), value)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(DecantError, match=r"No weights at .*model.safetensors"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    assert {name: each.tolist() for name, each in read_weights(tmp_path).items()} == {
        "a": [1, 1],
        "b": [2, 2],
    }
    for wrong in ("../a.safetensors", "a.bin"):
        index.write_text(json.dumps({"weight_map": {"a": wrong}}))
        with pytest.raises(DecantError, match=r"expected \.safetensors files beside it"):
            read_weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(DecantError, match="no index of weights"):
        read_weights(tmp_path)


# --- in the pipeline, without the packages


def described(**architecture: Any) -> dict[str, Any]:
    """Return a params.yaml whose teacher is a network of a package."""
    whole = content()
    whole["teacher"] = {"architecture": architecture, "inputs": whole["teacher"]["inputs"]}
    return whole


@pytest.fixture
def bert(tmp_path: Path) -> Iterator[Path]:
    """Work where params.yaml names a folder of transformers."""
    whole = described(kind="transformers", path="networks/bert", output="last_hidden_state")
    with home(tmp_path, params=whole):
        folder_of_bert = Path("networks/bert")
        folder_of_bert.mkdir(parents=True)
        folder_of(folder_of_bert, BERT)
        safetensors.torch.save_file({"a": torch.zeros(1)}, folder_of_bert / "model.safetensors")
        Path("data/arrays").mkdir(parents=True)
        safetensors.torch.save_file(arrays(60, 0), "data/arrays/train.safetensors")
        safetensors.torch.save_file(arrays(30, 1), "data/arrays/test.safetensors")
        changed(data__train="data/arrays/train.safetensors")
        yield folder_of_bert


def test_validate_reads_a_folder_of_transformers_and_its_sums(bert: Path, there: dict[str, str]) -> None:
    validate()
    sums = Path("data/files/teacher").read_text()
    assert sums.endswith("transformers 5.1.0\n")
    assert all(f"networks/bert/{name}" in sums for name in ("config.json", "model.safetensors"))
    there["transformers"] = "5.2.0"
    networks.trusted.cache_clear()
    validate()  # so that DVC makes the teacher anew
    assert Path("data/files/teacher").read_text() == sums.replace("5.1.0", "5.2.0")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "networks/none"}, "there is no file networks/none/config.json"),
        ({"path": "data/bert"}, "must lie in networks/"),
        ({"config": BERT}, "needs either path"),
        ({"path": ""}, "needs path"),
    ],
)
def test_validate_tells_what_a_folder_lacks(
    change: dict[str, Any], sentence: str, bert: Path, there: dict[str, str]
) -> None:
    changed(**{f"teacher__architecture__{key}": value for key, value in change.items()})
    with pytest.raises(DecantError, match=sentence):
        validate()


def test_a_folder_without_weights_needs_a_training(bert: Path, there: dict[str, str]) -> None:
    (bert / "model.safetensors").unlink()
    with pytest.raises(DecantError, match=r"teacher.weights: there is no file networks/bert/mo"):
        validate()


def test_a_network_of_timm_needs_weights_or_a_training(tmp_path: Path, there: dict[str, str]) -> None:
    section = {"architecture": {"kind": "timm", "name": "resnet18"}}
    assert "needs training, or weights" in mistakes(section, TeacherParams)[0]
    there.pop("timm")
    with home(tmp_path, params=described(kind="timm", name="resnet18")):
        changed(teacher__weights="networks/resnet.safetensors", data__labels="kind")
        with pytest.raises(
            DecantError, match=r"teacher.architecture: timm is not installed.*`pip install timm torchvision`"
        ):
            validate()


# --- with the packages, where they are installed


CASES: dict[str, tuple[dict[str, Any], str, str, dict[str, TensorInput]]] = {
    "bert": (BERT, "BertModel", "last_hidden_state", TOKENS),
    "t5": (
        {
            "model_type": "t5",
            "vocab_size": 50,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
        },
        "T5EncoderModel",
        "",
        TOKENS | {"attention_mask": TOKENS["attention_mask"].model_copy(update={"at_least": 1})},
    ),
    "vit": (
        {
            "model_type": "vit",
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "ViTForImageClassification",
        "",
        PICTURES,
    ),
}


def need_timm() -> None:
    """Skip a test where timm is absent, or the torchvision that it imports does not fit torch."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")


def adopted(architecture: Any, takes: dict[str, TensorInput], weights: Any = None) -> decant.Result:
    return decant.adopt(decant.Source(architecture, weights, inputs=takes))


def rows(takes: dict[str, TensorInput], count: int, seed: int) -> Examples:
    return Examples(Rows(dict(zip(takes, drawn(takes, count, seed), strict=True))), None, ())


def check_becomes_small(model: decant.Checkpoint, takes: dict[str, TensorInput], tmp_path: Path) -> None:
    """Check that a model goes to disk and back by itself, and is rounded, cut and exported."""
    data = Splits(rows(takes, 32, 1), rows(takes, 8, 2))
    images, right = data.validation.images, predict(model.module, data.validation.images)
    decant.save(model, tmp_path / "model")
    assert torch.equal(predict(decant.load(tmp_path / "model").module, images), right)
    eight = {"scheme": {"kind": "integer", "bits": 8}, "activations": {"bits": 8}, "images": 32}
    small = quantize(model, eight, data).model
    found = predict(small.module, images)
    assert torch.nn.functional.cosine_similarity(found, right).min() > 0.98
    thin = prune(
        model,
        {"criterion": {"kind": "magnitude"}, "structure": {"kind": "channels"}, "budget": {"sparsity": 0.3}},
        data,
    ).model
    for each in (model, small, thin):
        check_same("model", each, open_session(deploy(each).content, 1), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_networks_of_transformers_become_small(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config, class_, output, takes = CASES[name]
    check_becomes_small(adopted(transformers_of(config, class_, output), takes).model, takes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"zero_init_last": False}),  # else whole blocks give nothing, and cannot be rounded
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
    ],
)
def test_networks_of_timm_become_small(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    need_timm()
    check_becomes_small(adopted(Timm.of(name, num_classes=5, **options), PICTURES).model, PICTURES, tmp_path)


@pytest.fixture
def tiny_bert(tmp_path: Path) -> tuple[Path, Any]:
    """Return a folder as transformers writes it, in two files, and the network."""
    package = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = package.BertForMaskedLM(package.BertConfig(**BERT)).eval()
    network.save_pretrained(tmp_path / "bert", max_shard_size="10KB")
    assert (tmp_path / "bert" / "model.safetensors.index.json").is_file()
    return tmp_path / "bert", network


@pytest.mark.slow
def test_what_transformers_wrote_gives_what_transformers_gives(tiny_bert: tuple[Path, Any]) -> None:
    folder, network = tiny_bert
    result = adopted(Transformers.of(folder), TOKENS, folder)
    ids, mask = drawn(TOKENS, 5, 3)
    mask[:, 0] = 1
    with torch.no_grad():
        right = network(input_ids=ids, attention_mask=mask)
        assert torch.allclose(result.model.module(ids, mask), right.logits, atol=1e-6)
    assert result.facts["package"].startswith("transformers ")
    # One whose mask hides nothing goes the same way: transformers itself would leave it out.
    with torch.no_grad():
        right = network(input_ids=ids, attention_mask=torch.ones_like(mask))
        found = result.model.module(ids, torch.ones_like(mask))
    assert torch.allclose(found, right.logits, atol=1e-6)


@pytest.mark.slow
def test_what_of_transformers_does_not_fit_is_told(tiny_bert: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = tiny_bert

    def refused(sentence: str, weights: Any = folder, takes: Any = TOKENS, **options: Any) -> None:
        with pytest.raises(DecantError, match=sentence):
            adopted(Transformers.of(folder, **options), takes, weights)

    # The encoder alone: its pooler has no weights here.
    refused("pooler.dense.bias is missing", class_="BertModel", output="last_hidden_state")
    refused(
        "BertModel of transformers returns last_hidden_state .*, pooler_output .*; name the answer, as "
        "output: last_hidden_state",
        class_="BertModel",
    )
    refused("returns no tensor vectors; it returns logits", output="vectors")
    refused(
        r"takes no ids, mask; name the inputs as it does: input_ids, attention_mask",
        takes=dict(zip(("ids", "mask"), TOKENS.values(), strict=True)),
    )
    refused("has no network 'OwnModel'; if its code lies beside config.json, it is not", class_="OwnModel")
    refused("has no network 'Trainer'", class_="Trainer")
    tensors = read_weights(folder)
    name = "bert.embeddings.word_embeddings.weight"
    refused("extra has no place", tensors | {"extra": torch.zeros(1)})
    refused(
        rf"{name} has the shape \[50, 15\], the network's \[50, 16\]", tensors | {name: torch.zeros(50, 15)}
    )
    refused("does not fit BertForMaskedLM of transformers, in .* places", {"a": torch.zeros(1)})
    refused("holds NaN", tensors | {name: torch.full((50, 16), math.nan)})
    kind = pytest.importorskip("transformers").BertForMaskedLM
    with pytest.MonkeyPatch.context() as patch:  # as some classes have it, for whole parts of themselves
        patch.setattr(kind, "_keys_to_ignore_on_load_missing", ["word_embeddings"], raising=False)
        refused(f"{name} is missing", {key: each for key, each in tensors.items() if key != name})
    half = {name: each.half() for name, each in tensors.items()}
    assert adopted(Transformers.of(folder), TOKENS, half).facts["weights"] == "stored as torch.float16"


@pytest.mark.slow
def test_a_configuration_fetches_and_runs_nothing(tiny_bert: tuple[Path, Any]) -> None:
    folder, _ = tiny_bert
    (folder / "modeling_own.py").write_text("raise SystemExit('it was run')")
    evil = BERT | {
        "auto_map": {"AutoModel": "modeling_own.OwnModel", "AutoConfig": "modeling_own.OwnConfig"},
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
    }
    found = adopted(transformers_of(evil, "BertModel", "last_hidden_state"), TOKENS).model
    assert type(found.module.network).__module__.startswith("transformers.")
    with pytest.raises(DecantError, match="knows no model_type 'own'"):
        adopted(transformers_of(evil | {"model_type": "own"}, "BertModel"), TOKENS)
    backbone = {"model_type": "dpt", "backbone": "resnet50", "use_pretrained_backbone": True}
    with pytest.raises(DecantError):
        adopted(transformers_of(backbone, "DPTForDepthEstimation"), PICTURES)


@pytest.mark.slow
def test_what_of_timm_does_not_fit_is_told() -> None:
    need_timm()
    with pytest.raises(DecantError, match=r"has no network 'resnet81'; did you mean 'resnet18'"):
        Timm.of("resnet81").build()
    with pytest.raises(DecantError, match="resnet18 of timm: the network cannot be built: TypeError"):
        Timm.of("resnet18", widht=3).build()
    with pytest.raises(DecantError, match="resnet18 of timm: the network fails on its example"):
        adopted(Timm.of("resnet18"), {"x": TensorInput(shape=(1, 32, 32))})


@pytest.mark.slow
def test_a_folder_of_transformers_goes_through_the_pipeline(tiny_bert: tuple[Path, Any], bert: Path) -> None:
    folder, network = tiny_bert
    for file in bert.iterdir():
        file.unlink()
    for file in folder.iterdir():
        file.rename(bert / file.name)
    named = {"input_ids": "ids", "attention_mask": "mask"}
    for split, count, seed in (("train", 60, 0), ("test", 30, 1)):
        tensors = arrays(count, seed)
        tensors["mask"] = tensors["mask"].long()
        safetensors.torch.save_file(
            {name: tensors[old] for name, old in named.items()}, f"data/arrays/{split}.safetensors"
        )
    takes = {"shape": ["words"], "dtype": "int64"}
    changed(
        data__inputs=list(named),
        teacher__architecture={"kind": "transformers", "path": "networks/bert"},
        teacher__inputs={"input_ids": takes | {"below": 50}, "attention_mask": takes | {"below": 2}},
    )
    networks.trusted.cache_clear()
    validate()
    prepare()
    teach()
    compress("int8", QuantizeParams, quantize)
    teacher, small, test = load_model("teacher"), load_model("int8"), splits.read(splits.TEST).images
    assert isinstance(test, Rows)
    with torch.no_grad():
        right = network(**test.tensors).logits.flatten(1)
    assert torch.allclose(predict(teacher.module, test), right, atol=1e-5)
    gap = (predict(small.module, test) - right).abs().max()
    assert 0 < gap < 0.1 * right.abs().max()
    networks.trusted.cache_clear()
