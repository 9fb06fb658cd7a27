"""The real thing: `dvc repro` in a temporary clone, and what it may and may not run again."""

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.pool import Pool, StageError
from tests.clones import (
    clone,
    commit,
    dvc,
    isolated,
    read_params,
    run,
    shrink,
    sum_of_exports,
    sums,
    write_params,
)
from tests.warm import STAGES, Forked, kept, warm_python

MODELS = [
    "clip-percentile",
    "prune-80",
    "prune-80-ft",
    "prune-80-ft-int8",
    "student",
]


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """Yield a folder whose `python` runs stages without importing torch anew for each."""
    with warm_python() as folder:
        yield folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    """Return a clone in which a short list of models, of every operation, has been built and committed."""
    folder = clone(tmp_path_factory.mktemp("pipeline") / "decant")
    shrink(folder, MODELS)
    dvc(folder, "repro", python=python)
    commit(folder, "built")
    return folder


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_every_model_is_there_and_measured_by_the_same_keys(built: Path) -> None:
    rows = {
        name: json.loads((built / "metrics" / f"{name}.json").read_text()) for name in ["teacher", *MODELS]
    }
    assert len({tuple(row) for row in rows.values()}) == 1
    assert rows["teacher"]["agreement"] == 1.0
    assert rows["teacher"]["accuracy"] > 0.5
    assert rows["prune-80"]["sparsity"] == pytest.approx(0.8, abs=1e-5)
    assert rows["prune-80-ft-int8"]["sparsity"] >= rows["prune-80"]["sparsity"]
    sizes = [rows[name]["size_bytes"] for name in ("prune-80-ft-int8", "prune-80", "teacher")]
    assert sizes == sorted(set(sizes))
    stable = {name: json.loads((built / "stability" / f"{name}.json").read_text()) for name in rows}
    assert len({tuple(row) for row in stable.values()}) == 1
    assert stable["teacher"]["corruption_agreement"] == 1.0 > stable["student"]["corruption_agreement"]
    for name, row in rows.items():
        files = [built / "models" / name / file for file in ("model.safetensors", "model.json")]
        assert row["size_bytes"] == sum(file.stat().st_size for file in files)
        assert name in (built / "report" / "README.md").read_text(encoding="utf-8")


def test_nothing_runs_when_nothing_changed(built: Path, python: Path) -> None:
    assert stages_run(dvc(built, "repro", python=python)) == set()
    assert json.loads(dvc(built, "status", "--json")) == {}
    assert run(["git", "status", "--porcelain"], built) == ""


def test_metrics_read_well_in_a_hundred_columns(built: Path) -> None:
    for words in (("metrics", "show"), ("metrics", "diff", "--all")):
        lines = dvc(built, *words).splitlines()
        assert len(lines) > len(MODELS)
        assert max(map(len, lines)) <= 100


def test_an_edited_block_reruns_the_model_and_its_descendants_alone(built: Path, python: Path) -> None:
    """Models and measures run; that the evidence of the same ones is to run, and what shows all, DVC says."""
    params = read_params(built)
    params["models"]["prune-80-ft"]["training"]["weight_decay"] = 0.001
    write_params(built, params)
    changed = ("prune-80-ft", "prune-80-ft-int8")
    every = [f"{kind}@{model}" for kind in ("compress", "evaluate") for model in MODELS]
    ran = stages_run(dvc(built, "repro", "evaluate-teacher", *every, python=python))
    assert ran == {f"{kind}@{m}" for kind in ("compress", "evaluate") for m in changed} | {"validate"}
    stale = json.loads(dvc(built, "status", "--json")).keys()
    evidence = {f"{kind}@{model}" for kind in ("stability", "explain") for model in changed}
    assert stale == evidence | {"benchmark", "report", "illustrate"}
    assert "prune-80-ft" in dvc(built, "metrics", "diff")
    run(["git", "checkout", "--quiet", "."], built)
    dvc(built, "checkout")


@pytest.mark.slow
def test_a_model_of_another_recipe_that_the_run_cache_gives_back_is_refused(
    built: Path, python: Path
) -> None:
    """By `dvc repro` and by a flow, where a descendant is asked for too; what the message says helps."""
    params = read_params(built)
    params["models"]["prune-80"]["budget"]["sparsity"] = 0.6
    write_params(built, params)
    dvc(built, "commit", "--force", "compress@prune-80")  # 0.6 beside the model of 0.8, in the run cache too
    run(["git", "checkout", "--quiet", "dvc.lock"], built)
    shutil.rmtree(built / "models" / "prune-80")
    refused = (
        "models/prune-80 is not .* expected budget.sparsity of prune-80 to be 0.6, found 0.8; run `(.*)`, "
    )
    with pytest.raises(RuntimeError, match=refused) as failure:
        dvc(built, "repro", "evaluate@prune-80-ft", python=python)
    assert "Stage 'compress@prune-80' is cached - skipping run" in str(failure.value)
    assert stages_run(str(failure.value)) == {"validate", "evaluate@prune-80"}
    printed: list[str] = []
    with Pool(built) as pool, pytest.raises(StageError, match="exited with 1"):
        environment = {"PATH": isolated(python)["PATH"]}
        pool.run("evaluate@prune-80", environment=environment, line=lambda text, _: printed.append(text))
    (command,) = re.findall(refused, "\n".join(printed))
    assert not (built / "metrics" / "prune-80.json").exists()
    dvc(built, *command.split()[1:], python=python)
    dvc(built, "repro", "evaluate@prune-80", python=python)
    assert json.loads((built / "metrics" / "prune-80.json").read_text())["sparsity"] == pytest.approx(
        0.6, 1e-5
    )
    run(["git", "checkout", "--quiet", "."], built)
    dvc(built, "checkout")


def test_forcing_a_model_again_gives_the_same_bytes(built: Path, python: Path) -> None:
    """One of each kind of stage behind the teacher; all of them are forced below."""
    before = sums(built)
    stages = ["compress@prune-80-ft-int8", "evaluate@prune-80-ft-int8", "report"]
    dvc(built, "repro", "--force", "--single-item", *stages, python=python)
    assert sums(built) == before


@pytest.mark.slow
def test_forcing_everything_again_gives_the_same_bytes(built: Path) -> None:
    """Each stage in a Python of its own, as users run it, which gives what warm ones gave.

    All but what is measured of most models, which one of them stands for.
    """
    before = sums(built)
    names = dvc(built, "stage", "list", "--all", "--name-only").split()
    stages = [each for each in names if not re.match(r"(evaluate|stability|explain)@(?!student)", each)]
    ran = stages_run(dvc(built, "repro", "--force", "--single-item", *stages))
    assert ran == set(stages)
    assert {
        "teacher",
        "compress@student",
        "evaluate@student",
        "explain@student",
        "prepare",
        "benchmark",
    } <= ran
    assert sums(built) == before
    assert run(["git", "status", "--porcelain"], built) == ""


def test_the_times_name_the_exports_that_dvc_lock_has(built: Path) -> None:
    tables = [json.loads(path.read_text()) for path in (built / "benchmark").glob("*.json")]
    assert sums(built)["onnx"] in [sum_of_exports(table) for table in tables]


def test_a_killed_training_goes_on_to_the_same_bytes(built: Path, python: Path, tmp_path: Path) -> None:
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    for folder in (whole, killed):
        shutil.copytree(built, folder, ignore=shutil.ignore_patterns(".git", ".dvc", "models", "onnx"))
        params = read_params(folder)
        params["teacher"]["training"]["epochs"] = 6
        write_params(folder, params)
    command = [str(python / "python"), "-m", "tasks.teacher"]
    run(command, whole)
    process = Forked(kept(*STAGES), command[2:], killed, isolated())
    while not list((killed / ".scratch").rglob("*.pt")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "models").exists()
    run(command, killed)
    for file in ("model.safetensors", "curve.csv", "lineage.json"):
        one, other = (folder / "models" / "teacher" / file for folder in (whole, killed))
        assert one.read_bytes() == other.read_bytes()
    assert not (killed / ".scratch" / "teacher").exists()


def test_a_mistake_in_params_stops_before_anything_runs(built: Path, python: Path) -> None:
    params = read_params(built)
    params["models"]["prune-80"]["criterion"]["kind"] = "magnitud"
    write_params(built, params)
    with pytest.raises(RuntimeError) as failure:
        dvc(built, "repro", python=python)
    assert "models.prune-80.criterion: unknown kind 'magnitud'; did you mean 'magnitude'?" in str(
        failure.value
    )
    assert "Traceback" not in str(failure.value)
    assert stages_run(str(failure.value)) == {"validate"}
    run(["git", "checkout", "--quiet", "."], built)
    dvc(built, "checkout")
