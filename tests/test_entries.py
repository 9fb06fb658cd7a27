"""What the worker does in DVC's place gives what DVC gives: parameters, hashes, entries of dvc.lock."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpath
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows import entries
from tasks.pipeline import lockfile
from tests.toys import workspace, writes
from tests.warm_dvc import dvc

KEYS = st.sampled_from(["a", "b", "1", "x-y"])
NAMES = st.lists(KEYS, min_size=1, max_size=3).map(".".join)
TREES = st.recursive(
    st.integers(0, 9) | st.text("ab", max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, TREES, max_size=4), st.lists(NAMES, max_size=4, unique=True))
def test_parameters_are_those_that_dvc_finds(params: dict[str, Any], names: list[str]) -> None:
    expected = {}
    for name in names:
        try:
            expected[name] = dpath.get(params, name, separator=".")
        except KeyError:
            continue
    assert entries.values(params, names) == expected


@pytest.fixture
def param() -> Iterator[Any]:
    """Yield DVC's module of parameters, which a test may change."""
    from dvc.dependency import param

    before = param.read_param_file
    yield param
    param.read_param_file = before


def test_a_file_of_parameters_is_parsed_once_for_each_content(
    param: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.fs import LocalFileSystem

    parsed, load, path = list[str](), param.load_path, tmp_path / "params.yaml"
    monkeypatch.setattr(
        param, "load_path", lambda *words, **more: (parsed.append(""), load(*words, **more))[1]
    )
    entries.remember_params()
    path.write_text("models: {m: {bits: 8}}\nseed: 1\n")

    def read(*names: str) -> Any:
        return param.read_param_file(LocalFileSystem(), str(path), list(names), flatten=True)

    assert read("models.m", "seed", "none") == {"models.m": {"bits": 8}, "seed": 1}
    assert [read("models.m.bits") for _ in range(5)] == [{"models.m.bits": 8}] * 5
    assert len(parsed) == 1
    path.write_text("models: {m: {bits: 5}}\nseed: 1\n")  # as long, and perhaps in the same moment
    assert read("models.m.bits") == {"models.m.bits": 5}
    assert len(parsed) == 2
    assert read("models.*.bits") == {"models.*.bits": 5}  # a pattern is DVC's to read


def dumped(stage: str, folder: Path) -> str:
    """Return the dvc.lock that `record` leaves."""
    from dvc.repo import Repo

    with Repo(folder) as repo, repo.lock:
        (found,) = (one for one in repo.index.stages if one.name == stage)
        found.save(run_cache=False)
        entries.record(found)
    return (folder / "dvc.lock").read_text()


PARAMS = {
    "models": {"m": {"rate": 1e-05, "on": "on", "words": "a: b # c", "long": "word " * 40, "none": None}},
    "seed": 1,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a workspace with outputs, and the dvc.lock that DVC writes there."""
    stages = {name: writes(f"{name}.out", params=["models.m", "seed"]) for name in ("a", "b", "c")}
    folder = workspace(tmp_path_factory.mktemp("entries") / "w", stages)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    dvc(folder, "repro", "--quiet")
    return folder, (folder / "dvc.lock").read_text()


@pytest.fixture
def clean(both: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(both[0], tmp_path / "w"))


def test_entries_are_put_in_as_dvc_does(both: tuple[Path, str], clean: Path) -> None:
    _, theirs = both
    found = lockfile.entries(theirs)
    assert found is not None
    (clean / "dvc.lock").unlink()
    assert [dumped(name, clean) for name in ("a", "b", "c")][-1] == theirs
    (clean / "dvc.lock").write_text(theirs.replace("md5: ", "md5: 0", 1))  # in its place, not at the end
    assert dumped("a", clean) == theirs
    assert dumped("b", clean) == theirs


def test_comments_and_other_forms_survive(both: tuple[Path, str], clean: Path) -> None:
    _, theirs = both
    (clean / "dvc.lock").write_text(f"# by hand\n{theirs}".replace("  b:", "  # words\n  b:"))
    text = dumped("c", clean)
    assert text.startswith("# by hand\n")
    assert "# words" in text
    assert yaml.safe_load(text) == yaml.safe_load(theirs)


def test_what_parameters_share_is_written_out(clean: Path) -> None:
    (clean / "params.yaml").write_text("seed: &s {x: [1, 2]}\nmodels: {m: *s}\n")
    text = dumped("b", clean)
    assert "&id" not in text
    assert yaml.safe_load(text)["stages"]["b"]["params"] == {
        "params.yaml": {"models.m": {"x": [1, 2]}, "seed": {"x": [1, 2]}}
    }


def test_the_status_of_a_plan_is_the_one_of_dvc(clean: Path) -> None:
    (clean / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"seed": 2}))
    (clean / "b.out").write_text("other")
    (clean / "c.out").unlink()
    from dvc.repo import Repo

    with Repo(clean) as repo, repo.lock:
        stages = list(repo.index.graph)
        with entries.unchanged(repo, stages):
            ours = {stage.addressing: entries.status(stage) for stage in stages}
        assert ours == {stage.addressing: stage.status()[stage.addressing] for stage in stages}
    assert not any(json.loads((clean / ".dvc" / "tmp" / "rwlock").read_text()).values())
