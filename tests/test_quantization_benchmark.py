"""The benchmark of quantization: its blocks are recipes, its arithmetic is right, and --quick runs it all."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import quantization, quantization_page, quantization_peers
from benchmarks.quantization import NETWORKS, PARTS, QUICK, merged
from benchmarks.quantization_cases import CASES, WIDTHS, Case, Recipe, least_bytes, of, quantized
from benchmarks.quantization_peers import ONNXRUNTIME, PEERS, Made, Peer, attempt
from decant.checkpoints.activations import InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels
from decant.networks.architectures import Mlp, build
from decant.quantize.params import QuantizeParams
from decant.schema import mistakes

RECIPE = Recipe(epochs=2, learning_rate=0.02, signs_rate=0.003, augmentation={"flip": True})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.way}, {case.width}")
def test_every_case_is_a_recipe(case: Case) -> None:
    assert mistakes(case.block(RECIPE, uniform=1000), QuantizeParams) == []


def test_every_width_is_a_recipe_with_nothing_in_more_bits() -> None:
    for width, (block, bits) in WIDTHS.items():
        assert mistakes(block, QuantizeParams) == [], width
        assert 1 <= bits <= 8
        assert QuantizeParams.model_validate(block).ends is None, width


def test_ways_are_told_apart_and_the_plain_one_comes_first() -> None:
    assert len({(case.way, case.width) for case in CASES}) == len(CASES)
    assert {case.width for case in CASES} == set(quantization_page.WIDTHS)
    for case in CASES:
        if case.share:
            plain = next(other for other in CASES if other.width == case.width)
            assert plain.way == "nearest, min-max"


def test_signs_are_trained_by_adam_without_decay_and_integers_by_sgd() -> None:
    trained = {case.width: case.block(RECIPE)["train"] for case in CASES if case.trained and not case.once}
    assert trained["binary"]["training"]["optimizer"] == {"kind": "adamw", "learning_rate": 0.003}
    assert trained["binary"]["training"]["weight_decay"] == 0
    assert (trained["binary"]["training"]["epochs"], trained["4 bits"]["training"]["epochs"]) == (3, 2)
    assert trained["4 bits"]["training"]["optimizer"] == {"kind": "sgd", "learning_rate": 0.02}
    assert trained["4 bits"]["loss"]["temperature"] == 2


def test_mixed_widths_get_the_bytes_of_the_plain_way_and_a_block_stays_as_it_is() -> None:
    case = next(case for case in CASES if case.share)
    before = copy.deepcopy(case.content)
    assert case.block(RECIPE, uniform=12345)["mixed"] == {"budget": {"bytes": 12345}}
    assert case.content == before


def levels(values: list[float], scale: Tensor, zero_point: Tensor | None = None) -> Constraints:
    return Constraints(levels=Levels(torch.tensor(values), scale, zero_point))


def test_the_least_bytes_by_hand() -> None:
    """4 inputs, 3 hidden, 2 classes: 12 + 6 weights, 5 biases, a mean and a deviation."""
    architecture = Mlp(hidden=(3,))
    module = build(architecture, (1, 2, 2), 2, seed=0)
    whole = Checkpoint(architecture, (1, 2, 2), ("a", "b"), module)
    assert least_bytes(whole, 8) == 4 * (12 + 6 + 5 + 2)

    held = {"layers.0.weight": levels([-1, 0, 1], torch.ones(3, 1))}
    some = whole.narrowed(held, {"layers.0": InputGrid(8, 0.1, 0)})
    assert least_bytes(some, 2) == 12 * 2 / 8 + 4 * 3 + 4 * (6 + 5 + 2) + 5

    held |= {"layers.2.weight": levels([-0.5, 0.1], torch.tensor(1.0))}  # a codebook, with its entries
    assert least_bytes(whole.narrowed(held), 1) == 18 / 8 + 4 * 3 + 4 * (1 + 2) + 4 * (5 + 2)

    affine = {"layers.2.weight": levels([0, 1, 2, 3], torch.ones(2, 1), torch.ones(2, 1))}
    assert least_bytes(whole.narrowed(affine), 2) == 6 * 2 / 8 + (4 + 1) * 2 + 4 * (12 + 5 + 2)


def test_rows_replace_those_of_the_same_network_seed_way_and_width() -> None:
    def row(seed: int, way: str, accuracy: float) -> dict[str, Any]:
        place = {"network": "default", "processor": "P", "seed": seed}
        return {**place, "way": way, "width": "4 bits", "accuracy": accuracy}

    before = [row(1, "lsq", 90), row(1, "ste", 80), row(2, "lsq", 91)]
    assert merged(before, [row(1, "ste", 85), row(3, "lsq", 92)]) == [
        row(1, "lsq", 90),
        row(1, "ste", 85),
        row(2, "lsq", 91),
        row(3, "lsq", 92),
    ]


def test_a_tool_that_is_not_there_and_one_that_fails_are_words_and_no_numbers() -> None:
    def broken(task: Any) -> Made:
        raise RuntimeError("no kernel\nand a long trace")

    before = torch.get_deterministic_debug_mode()
    missing, why = attempt(Peer(("no-such-package-as-this",), "8 bits", broken), None)  # type: ignore[arg-type]
    assert missing is None
    assert why == "no-such-package-as-this not installed"

    class Seeded:
        seed = 1

    failed, why = attempt(Peer(("torch",), "8 bits", broken), Seeded())  # type: ignore[arg-type]
    assert failed is None
    assert why == f"fails with torch {torch.__version__}: RuntimeError: no kernel"
    assert torch.get_deterministic_debug_mode() == before


def row(part: str, way: str, seed: int = 1, network: str = "default", **more: Any) -> dict[str, Any]:
    place = {"network": network, "processor": "P", "seed": seed}
    found: dict[str, Any] = {**place, "teacher": 93.0, "way": way, **more}
    if found.get("accuracy") is not None:
        found["change"] = found["accuracy"] - 93.0
    usual: dict[str, dict[str, Any]] = {
        "int8": {"width": "8 bits", "bytes": 1000},
        "widths": {"trained": False},
        "trained": {"trained": True, "recipe": {"train": {"kind": "ste", "epochs": 2}}},
        "peers": {"versions": {"torchao": ""}, "words": "of the file"},
        "bytes": {"width": way, "flat": 90.0},
    }
    return usual[part] | found


def results(**parts: list[dict[str, Any]]) -> Mapping[str, Any]:
    machine = {"processor": "P", "cores": 2, "onnxruntime": "1", "torch": "2"}
    return {part: {"machines": {"P": machine}, "rows": rows} for part, rows in parts.items()}


def latency(over_float32: float, over_peer: float) -> dict[str, Any]:
    def spread(ratio: float) -> list[float]:
        return [ratio, ratio - 0.1, ratio + 0.05]

    return {"batch 1": {"over float32": spread(over_float32), "over peer": spread(over_peer)}}


@pytest.mark.parametrize(
    ("accuracy", "size", "over_peer", "held"),
    [
        (92.95, 1000, 1.0, ["yes", "yes", "yes", "yes", "yes"]),
        (92.85, 1001, 0.96, ["**no**", "**no**", "**no**", "yes", "yes"]),
        (92.95, 900, 0.94, ["yes", "yes", "yes", "yes", "**no**"]),
    ],
)
def test_eight_bits_are_held_against_float32_and_the_peer(
    accuracy: float, size: int, over_peer: float, held: list[str]
) -> None:
    rows = [
        row("int8", "float32", accuracy=93.0, latency=latency(1.0, 0.5)),
        row("int8", quantization_page.MINE, accuracy=accuracy, bytes=size, latency=latency(1.8, over_peer)),
        row("int8", next(iter(ONNXRUNTIME)), accuracy=92.9, latency=latency(1.8, 1.0)),
    ]
    assert [line[-1] for line in quantization_page.promised(results(int8=rows))] == held


def test_trained_widths_are_judged_by_the_best_way_that_all_seeds_have() -> None:
    def trained(way: str, seed: int, accuracy: float) -> dict[str, Any]:
        return row("trained", way, seed, width="4 bits", accuracy=accuracy)

    rows = [trained("lsq", 1, 92.8), trained("lsq", 2, 92.7), trained("ste", 1, 93.0)]
    assert quantization_page.promised(results(trained=rows)) == [
        ["trained 4-bit weights within 0.3 points", "default", "P", "-0.25 (lsq)", "yes"]
    ]
    rows[1] = trained("lsq", 2, 92.4)
    assert quantization_page.promised(results(trained=rows))[0][-1] == "**no**"


def test_bytes_are_promised_of_networks_of_more_than_100_000_parameters() -> None:
    def size(bytes: int, parameters: int) -> dict[str, Any]:
        return row("bytes", "4 bits", bytes=bytes, least=100.0, parameters=parameters)

    def found(bytes: int, parameters: int) -> list[list[str]]:
        return quantization_page.promised(results(bytes=[size(bytes, parameters)]))

    assert found(200, 100_000) == []
    assert found(103, 100_001)[0][2:] == ["P", "3.00% (4 bits)", "yes"]
    assert found(104, 100_001)[0][2:] == ["P", "4.00% (4 bits)", "**no**"]


def test_the_page_tells_means_spreads_refusals_and_what_is_not_installed() -> None:
    rows = [
        row("widths", "gptq, mse", 1, width="3 bits", accuracy=92.0),
        row("widths", "gptq, mse", 2, width="3 bits", accuracy=91.0),
        row("widths", "nearest, mse", 1, width="3 bits", accuracy=90.0),
        row("widths", "nearest, mse", 2, width="3 bits", accuracy=90.0),
        row("widths", "powers of two", 1, width="3 bits", accuracy=None, note="too few levels"),
    ]
    others = [
        row("peers", "torchao pt2e", width="int8", accuracy=None, note="torchao not installed"),
        row("peers", "Brevitas", width="int8", accuracy=92.5, bytes=12345),
    ]
    lines = quantization_page.page(results(widths=rows, peers=others)).splitlines()
    assert "### default, teacher 93.00 %, seeds 1, 2, P" in lines
    assert "| gptq, mse | -1.50 ± 0.71 |" in lines
    assert "| nearest, mse | -3.00 |" in lines
    assert "| powers of two | refused |" in lines
    assert "## Fewer bits, trained" not in lines
    assert "| torchao pt2e | not installed | - | torchao not installed |" in lines
    assert "| Brevitas | -0.50 | 12,345 | of the file |" in lines


def test_the_picture_has_a_curve_for_each_way_that_was_measured(tmp_path: Path) -> None:
    rows = [
        row("widths", "gptq, mse", width=width, accuracy=accuracy)
        for width, accuracy in (("4 bits", 92.9), ("3 bits", 92.0), ("2 bits", 10.0))
    ]
    learned = [row("trained", "ttq", width="ternary", accuracy=92.5)]
    learned += [row("trained", "ste", width="ternary", accuracy=91.0)]
    figure = quantization_page.picture({"default, P": [*rows, *learned]})
    (panel,) = figure.axes
    lines = {str(line.get_label()): line for line in panel.get_lines()}
    assert {label for label in lines if not label.startswith("_")} == {"gptq, mse", "trained"}
    assert np.asarray(lines["gptq, mse"].get_ydata()) == pytest.approx([-0.1, -1.0, -30.0])
    assert np.asarray(lines["trained"].get_ydata()) == pytest.approx([-0.5])
    quantization_page.draw(results(widths=rows, trained=learned), tmp_path / "picture.svg")
    assert "default, P" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_what_another_processor_has_measured_stays_beside_it() -> None:
    machine = {"processor": "P", "cores": 2}
    kept: dict[str, Any] = {}
    quantization.put_(kept, "bytes", machine, [row("bytes", "4 bits", bytes=1)])
    other = row("bytes", "4 bits", bytes=2) | {"processor": "Q"}
    quantization.put_(kept, "bytes", machine | {"processor": "Q"}, [other])
    quantization.put_(kept, "bytes", machine | {"cores": 4}, [row("bytes", "4 bits", bytes=3)])
    assert [(each["processor"], each["bytes"]) for each in kept["bytes"]["rows"]] == [("P", 3), ("Q", 2)]
    assert {name: each["cores"] for name, each in kept["bytes"]["machines"].items()} == {"P": 4, "Q": 2}


def test_quick_and_full_runs_have_the_same_networks_and_quick_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(QUICK) == list(NETWORKS) == list(quantization_page.NETWORKS)
    with pytest.raises(SystemExit):
        quantization.main(["--quick", "--write"])
    assert "--quick measures nothing worth writing" in capsys.readouterr().err


def in_few_steps(case: Case) -> dict[str, Any]:
    """Return a case's block, with few images where rounding looks at outputs, and few steps of AdaRound."""
    if "rounding" not in case.content:
        return {**case.content}
    rounding = dict(case.content["rounding"])
    return {
        **case.content,
        "rounding": rounding | ({"steps": 20} if rounding["kind"] == "adaround" else {}),
        "images": 200,
    }


@pytest.mark.slow
def test_every_row_of_every_part_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute: each case, width and tool on the digits, once, with few steps where each takes some."""
    monkeypatch.setattr(quantization, "IMAGES", 200)
    monkeypatch.setattr(quantization, "CASES", [replace(case, content=in_few_steps(case)) for case in CASES])
    found = quantization.main(["--quick", "--seeds", "1", "--threads", "1"])
    assert list(found) == list(PARTS)
    for network in NETWORKS:
        rows = {part: [r for r in found[part]["rows"] if r["network"] == network] for part in PARTS}
        measured = rows["widths"] + rows["trained"]
        assert [(r["way"], r["width"]) for r in measured] == [(c.way, c.width) for c in CASES]
        assert [r["way"] for r in measured if r["accuracy"] is None] == []
        assert [r["width"] for r in rows["bytes"]] == list(WIDTHS)
        assert all(r["bytes"] > 0.8 * r["least"] for r in rows["bytes"])
        assert {r["way"] for r in rows["int8"]} == {
            "float32",
            *quantization_page.OURS,
            *ONNXRUNTIME,
        }
        assert all(r["accuracy"] > 50 and len(r["latency"]) == 2 for r in rows["int8"])
        assert [r["way"] for r in rows["peers"]] == list(PEERS)
        for peer in rows["peers"]:
            installed = all(quantization_peers.installed(name) for name in PEERS[peer["way"]].package)
            assert installed or (peer["accuracy"] is None and "not installed" in peer["note"])


def test_blocks_say_what_they_are_made_of() -> None:
    assert quantized(4, {"kind": "mse"}, symmetric=False, correct_bias=True) == of(
        {"kind": "integer", "bits": 4, "range": {"kind": "mse"}, "symmetric": False}, correct_bias=True
    )
    assert quantized(8, static=True)["activations"] == {"bits": 8}
