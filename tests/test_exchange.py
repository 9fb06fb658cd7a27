"""What another clone has run is taken for what it is: a stage that has changed gets no outputs of before."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.pool import Pool, StageError
from tests.toys import git, workspace

STAGE = {
    "cmd": "python -c \"import re; open('m.out', 'w').write(open('params.yaml').read())\"",
    "params": ["bits"],
    "outs": ["m.out"],
    "deps": ["source"],
}


def write_bits(folder: Path, bits: int) -> None:
    (folder / "params.yaml").write_text(f"bits: {bits}\n")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Return two clones with a remote between them; the first has made `m.out` with 8 bits."""
    one = workspace(tmp_path / "one", {"m": STAGE})
    config = one / ".dvc" / "config"
    store = f"['remote \"store\"']\n    url = {tmp_path / 'store'}\n"
    config.write_text(config.read_text().replace("[core]\n", "[core]\n    remote = store\n") + store)
    (one / "source").write_text("x")
    write_bits(one, 8)
    with Pool(one) as pool:
        assert pool.run("m", pull=True) == "Ran"
        pool.ask({"do": "send", "stage": "m"})
    git(one, "add", "--all")
    git(one, "-c", "user.name=D", "-c", "user.email=d@example.org", "commit", "--quiet", "-m", "8 bits")
    git(tmp_path, "clone", "--quiet", str(one), str(tmp_path / "two"))
    return one, tmp_path / "two"


def made(folder: Path) -> tuple[str, Any]:
    """Return what the stage wrote, and its parameters in dvc.lock."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["m"]
    return (folder / "m.out").read_text(), lock["params"]["params.yaml"]


def test_a_changed_recipe_is_not_answered_with_the_model_of_before(two: tuple[Path, Path]) -> None:
    one, other = two
    for folder in (one, other):  # with the old output in the workspace, and without
        write_bits(folder, 5)
        with Pool(folder) as pool:
            outcome = pool.run("m", pull=True)
            entry = pool.ask({"do": "send", "stage": "m"})
        assert made(folder) == ("bits: 5\n", {"bits": 5})
        assert outcome == ("Ran" if folder == one else "RestoredFromRunCache")
    write_bits(one, 8)
    with Pool(one) as pool:
        assert pool.run("m", pull=True) == "RestoredFromRunCache"
        with pytest.raises(StageError, match=r"it ran on something else .* params\.yaml"):
            pool.ask({"do": "adopt", "stage": "m", "entry": entry})
        assert pool.run("m", pull=True) == "UpToDate"
    assert made(one) == ("bits: 8\n", {"bits": 8})


@pytest.mark.slow
def test_an_unchanged_stage_is_pulled_without_any_run_cache(two: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = two
    shutil.rmtree(tmp_path / "store" / "files" / "md5" / "runs", ignore_errors=True)
    shutil.rmtree(tmp_path / "store" / "runs", ignore_errors=True)
    with Pool(other) as pool:
        assert pool.run("m", pull=True) == "RestoredFromRunCache"
    assert made(other) == ("bits: 8\n", {"bits": 8})
