"""A run begins with the stage `code`, and plans by what that records. Prefect is not needed."""

import json
import shutil
from pathlib import Path

import pytest

from decant.errors import DecantError
from flows.pool import Pool
from flows.session import opened
from tests.toys import recorded, workspace, writes
from tests.warm_dvc import dvc


def project(folder: Path) -> Path:
    """Return a workspace whose stages depend on records of the code in `library`; nothing has run."""
    workspace(folder, recorded())
    for name in ("used/one", "used/two", "unused"):
        write(folder, name, "1")
    return folder


def write(folder: Path, name: str, text: str) -> None:
    """Write a file of `library`."""
    path = folder / "library" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def up_to_date(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a workspace in which everything is up to date; tests work in copies of it."""
    folder = project(tmp_path_factory.mktemp("session") / "w")
    with Pool(folder) as pool:
        assert [pool.run(name) for name in ("code", "a", "b")] == ["Ran"] * 3
    return folder


@pytest.fixture
def clean(up_to_date: Path, tmp_path: Path) -> Path:
    """Return a workspace in which everything is up to date."""
    return Path(shutil.copytree(up_to_date, tmp_path / "w"))


def planned(folder: Path, *targets: str, force: bool = False) -> tuple[list[str], list[str]]:
    """Return the stages that had to run before the plan, and why each of the others is to run."""
    with opened(folder, list(targets), force) as session:
        assert all(result.state == "Ran" for result in session.results.values())
        return list(session.results), [f"{name}: {session.plan.reason(name)}" for name in session.to_run]


def test_an_edit_that_no_record_shows_reruns_nothing(clean: Path) -> None:
    assert planned(clean) == ([], [])
    write(clean, "unused", "2")
    assert planned(clean) == (["code"], [])
    assert planned(clean) == ([], [])
    assert json.loads(dvc(clean, "status", "--json")) == {}


def test_a_stage_is_told_with_the_source_files_that_changed(clean: Path) -> None:
    write(clean, "used/one", "2")
    write(clean, "used/three", "1")
    (clean / "library" / "used" / "two").unlink()
    reason = "a: modified library/used/one, new library/used/three, removed library/used/two"
    following = "b: comes after others that run"
    assert planned(clean) == (["code"], [reason, following])
    assert planned(clean, "a") == ([], [reason])  # until it has run, however often somebody asks


def test_changed_code_is_told_without_files_where_the_older_record_is_gone(clean: Path) -> None:
    write(clean, "used/one", "2")
    shutil.rmtree(clean / ".dvc" / "cache")
    (_, [reason, _]) = planned(clean)
    assert reason.startswith("a: its code changed")


def test_a_stage_that_never_ran_has_no_record_to_compare(tmp_path: Path) -> None:
    before, [first, _] = planned(project(tmp_path / "w"))
    assert before == ["code"]
    assert first == "a: dvc.lock has no record of its code, deleted a.out"


def test_force_plans_the_records_too(clean: Path) -> None:
    _, forced = planned(clean, force=True)
    assert [line.partition(":")[0] for line in forced] == ["code", "a", "b"]


def test_a_dag_without_records_is_planned_as_it_is(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {"a": writes("a.out")})
    assert planned(folder) == ([], ["a: deleted a.out"])


def test_records_that_are_written_otherwise_are_compared_as_a_whole(tmp_path: Path) -> None:
    stages = recorded()
    stages["code"]["cmd"] = "mkdir -p records && cat library/used/one > records/a"
    write(folder := workspace(tmp_path / "w", stages), "used/one", "no sum and path")
    with Pool(folder) as pool:
        assert [pool.run(name) for name in ("code", "a", "b")] == ["Ran"] * 3
    write(folder, "used/one", "others")
    assert planned(folder)[1][0] == "a: its code changed"
    with Pool(folder) as pool:
        assert list(pool.ask({"do": "inputs", "stages": ["a"]})["a"]) == ["its command", "records/a"]


def test_records_count_as_code_by_their_source_files(clean: Path) -> None:
    with Pool(clean) as pool:
        inputs = pool.ask({"do": "inputs", "stages": ["code", "a", "b"]})
    assert list(inputs["code"]) == ["its command", "library"]
    assert list(inputs["a"]) == ["its command", "library/used/one", "library/used/two"]
    assert list(inputs["b"]) == ["its command"]
    write(clean, "used/one", "2")
    with Pool(clean) as pool:
        pool.run("code")
        found = pool.ask({"do": "inputs", "stages": ["a"]})["a"]
    assert [path for path in found if found[path] != inputs["a"][path]] == ["library/used/one"]


def test_the_version_of_a_stage_changes_with_its_code(tmp_path: Path) -> None:
    folder, versions = project(tmp_path / "w"), []
    for text in ("1", "2"):
        write(folder, "used/one", text)
        with opened(folder, [], force=False) as session:
            versions.append(session.plan.stages["a"].code)
    assert len(set(versions)) == 2
    assert all(versions)


def test_records_that_cannot_be_made_are_told_with_their_last_lines(tmp_path: Path) -> None:
    stages = recorded()
    stages["code"]["cmd"] = "echo because of this; exit 3"
    write(folder := workspace(tmp_path / "w", stages), "used/one", "1")
    told = r"(?s)code failed: .*exited with 3.*because of this.*dvc repro --single-item code"
    with pytest.raises(DecantError, match=told), opened(folder, [], force=False):
        pass
