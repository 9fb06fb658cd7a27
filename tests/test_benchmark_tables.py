"""What is kept of measured times, when it is measured anew, and the page of all processors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from decant.errors import DecantError
from decant.outputs import file_name, write_json
from tasks.benchmark import tables
from tasks.benchmark.exports import at_once
from tasks.benchmark.page import readme
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.tables import BENCHMARK, MEASURING, Table, kept, other_models, path_here, read, settings
from tests.clones import sum_of_exports
from tests.imports import ROOT

MACHINE = {
    "processor": "AMD EPYC with AVX512",
    "system": "Linux",
    "threads": 1,
    "onnxruntime": "1.32.0",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
}
HOW = {"rounds": 20, "seconds": 15.0, "code": "0123456789ab"}
SUMS = {"teacher": "aa", "int8": "bb"}


def row(onnx_md5: str, speedup: float) -> dict[str, Any]:
    keys = ("p50_seconds", "p95_seconds", "images_per_second", "speedup", "speedup_low", "speedup_high")
    batches = {
        f"batch_{size}": dict(zip(keys, (0.001, 0.002, size * 1e3, speedup, speedup, speedup), strict=True))
        for size in (1, 128)
    }
    return {
        "onnx_md5": onnx_md5,
        "size_bytes": 1000,
        "size_ratio": 1.0,
        "onnx_bytes": 2000,
        "peak_memory_bytes": None,
        "onnxruntime": batches,
        "pytorch": batches,
        "verdict": "not smaller, not faster",
    }


def table(**machine: Any) -> Table:
    models = {"teacher": row("aa", 1.0), "int8": row("bb", 2.0)}
    return copy.deepcopy({"machine": MACHINE | machine, "settings": HOW, "rounds": 13, "models": models})


def test_a_table_of_the_same_models_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, table())
    found, said = kept(path, MACHINE | {"python": "3.11.9"}, HOW, dict(reversed(SUMS.items())))
    assert found == table() == read(path)
    assert (
        said == f"{path} has the times of these very models and is left as it is; delete it to measure anew"
    )


@pytest.mark.parametrize(
    ("now", "sums", "why"),
    [
        ({"onnxruntime": "1.33.0"}, SUMS, "onnxruntime: 1.32.0, now 1.33.0"),
        ({"torch": "2.14.0"}, SUMS, "torch: 2.13.0+cpu, now 2.14.0"),
        ({"threads": 2}, SUMS, "threads: 1, now 2"),
        ({"rounds": 5, "seconds": 1.0}, SUMS, "rounds: 20, now 5; seconds: 15.0, now 1.0"),
        ({"code": "ba9876543210"}, SUMS, "code: 0123456789ab, now ba9876543210"),
        ({}, SUMS | {"int8": "cc"}, "other models: int8"),
        ({}, SUMS | {"thin": "cc"}, "other models: thin"),
        ({}, {"teacher": "aa"}, "other models: int8"),
        (
            {"threads": 2},
            {"teacher": "aa", "thin": "bb"},
            "threads: 1, now 2; other models: int8, thin",
        ),
    ],
)
def test_what_has_all_measured_anew(
    now: dict[str, Any], sums: dict[str, str], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    write_json(path, table())
    machine = MACHINE | {key: value for key, value in now.items() if key in MACHINE}
    how = HOW | {key: value for key, value in now.items() if key in HOW}
    assert kept(path, machine, how, sums) == (
        None,
        f"{path} is not what would be measured now ({why}): all models are measured anew",
    )


def spoilt(change: Callable[[Table], Any]) -> str:
    content = table()
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not hold what it should .* Expecting value"),
        ('{"machine": ', "does not hold what it should .* Expecting value"),
        ("\xff", "does not hold what it should"),
        ("[]", "is no table of measured times"),
        ("3", "is no table of measured times"),
        ('{"machine": {}, "settings": {"rounds": 13}, "models": {}}', "is no table of measured times"),
        (spoilt(lambda t: t.pop("settings")), "is no table of measured times: settings: "),
        (spoilt(lambda t: t["models"]["int8"].pop("onnx_md5")), r"models\.int8\.onnx_md5: "),
        (spoilt(lambda t: t["models"]["int8"].update(pytorch={})), r"models\.int8\.pytorch\.batch_1: "),
        (spoilt(lambda t: t["models"]["int8"]["pytorch"]["batch_1"].update(speedup=float("nan"))), "finite"),
        (spoilt(lambda t: t["models"].update(int8=None)), r"models\.int8: "),
    ],
)
def test_a_damaged_file_or_one_of_an_old_form_is_told_in_one_sentence(
    text: str, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DecantError, match=why) as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1
    assert kept(path, MACHINE, HOW, SUMS) == (None, f"{error.value}: all models are measured anew")


def test_the_page_is_the_same_for_the_same_tables() -> None:
    one, two = table(), table(processor="Other with AVX2", system="Darwin", threads=2)
    page = readme([one, two], SUMS)
    assert page == readme([table(), copy.deepcopy(two)], dict(reversed(SUMS.items())))
    assert page.index("## AMD EPYC with AVX512\n") < page.index("## Other with AVX2\n")
    assert (
        "Measured on Linux with one thread, ONNX Runtime 1.32.0 and PyTorch 2.13.0+cpu, in 13 rounds.\n"
        in page
    )
    assert "Measured on Darwin with 2 threads" in page
    assert (
        page.count("| int8 | 2.00 (2.00 to 2.00) |")
        == page.count("- **int8**: not smaller, not faster.")
        == 2
    )
    assert "- **teacher**" not in page
    assert "Since then" not in page


def test_the_page_has_the_bytes_that_are_deployed_beside_the_packed_ones() -> None:
    lines = [line.strip("| ").split(" | ") for line in readme([table()], SUMS).splitlines() if "|" in line]
    assert len({len(line) for line in lines}) == 1
    found = dict(zip(lines[0], lines[2], strict=True))
    assert (found["packed, KB"], found["ONNX file, KB"], found["times smaller"]) == ("1.0", "2.0", "1.0")


def test_the_page_says_which_models_a_table_does_not_know() -> None:
    page = readme([table()], SUMS | {"int8": "cc", "thin": "dd"})
    assert "in 13 rounds. Since then these models have changed, come or gone: int8, thin.\n" in page


def test_a_processor_has_a_file_of_its_own() -> None:
    assert file_name("AMD EPYC 9V74 80-Core Processor AVX512") == "amd-epyc-9v74-80-core-processor-avx512"
    assert file_name("Intel(R) Xeon(R) @ 2.80GHz DEFAULT") == "intel-r-xeon-r-2-80ghz-default"
    assert path_here().parent == BENCHMARK
    assert path_here().suffix == ".json"


def test_the_settings_change_with_the_code_that_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    params = BenchmarkParams(rounds=7, seconds=3)
    before = settings(params)
    assert before == settings(params)
    assert list(before) == ["rounds", "seconds", "code"]
    assert (before["rounds"], before["seconds"]) == (7, 3.0)
    assert all((ROOT / file).is_file() for file in MEASURING)
    real = tables.meaning
    monkeypatch.setattr(tables, "meaning", lambda path: "x" if path.name == "timing.py" else real(path))
    assert settings(params)["code"] != before["code"]


@pytest.mark.parametrize("threads", [1, 99])
def test_what_runs_at_once_comes_in_order(threads: int) -> None:
    assert list(at_once(str.upper, ["a", "b", "c"], threads)) == ["A", "B", "C"]


def test_what_fails_at_once_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(at_once(lambda name: 1 / (name != "b"), ["a", "b", "c"], 1))


def test_the_committed_times_are_of_the_models_in_dvc_lock() -> None:
    outs = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]["benchmark"]["outs"]
    (locked,) = (out["md5"] for out in outs if out["path"] == "onnx")
    found = {path.name: read(path) for path in (ROOT / BENCHMARK).glob("*.json")}
    assert locked in {sum_of_exports(content) for content in found.values()}, (
        "no table in benchmark/ is of the models in dvc.lock: run `python -m tasks.benchmark` and commit it"
    )
    (sums,) = {
        tuple((n, r["onnx_md5"]) for n, r in c["models"].items())
        for c in found.values()
        if sum_of_exports(c) == locked
    }
    page = (ROOT / BENCHMARK / "README.md").read_text(encoding="utf-8")
    assert page == readme([found[name] for name in sorted(found)], dict(sums))


def test_tables_of_the_same_models_differ_in_none() -> None:
    assert other_models(table(), SUMS) == []
