"""Branches and bases of scheduled runs: what is no such name is refused before anything is touched."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decant.errors import DecantError
from flows import scheduled, worktrees
from flows.names import branch_name, revision_name
from tests.toys import git, workspace

NO_BRANCHES = [
    "",
    "..",
    ".",
    "a..b",
    "../x",
    "my branch",
    "-D",
    "--all",
    "HEAD",
    "@",
    "@{-1}",
    "x.lock",
    "a/",
    "/a",
]
NO_BRANCHES += [
    "a\nb",
    "a\0b",
    "\ud800",
    "a" * 201,
    "~/x",
    "a:b",
    "*",
    "a//b",
    ".a",
    "0" * 40,
    "a\\b",
    "tab\t",
]
NO_REVISIONS = ["", " ", "-D", "--all", "a\nb", "main\0", "\ud800", "x" * 2000]


@pytest.mark.parametrize("name", NO_BRANCHES)
def test_what_git_takes_for_no_branch_is_none(name: str) -> None:
    with pytest.raises(DecantError, match="Expected the name of a branch, found"):
        branch_name(name)


@pytest.mark.parametrize("name", ["nightly", "team/nightly", "ä-ö", "x.y", "v1", "a" * 200, "1"])
def test_a_branch_keeps_its_name(name: str) -> None:
    assert branch_name(name) == name


@pytest.mark.parametrize("name", NO_REVISIONS)
def test_what_cannot_be_a_revision_is_none(name: str) -> None:
    with pytest.raises(DecantError, match="Expected a Git revision"):
        revision_name(name)


@pytest.mark.parametrize(
    "name", ["main", "origin/main", "v1", "HEAD~3", "abc123", "main@{1 day ago}", ":/fix"]
)
def test_a_revision_keeps_its_name(name: str) -> None:
    assert revision_name(name) == name


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_branches_never_share_a_folder_and_none_leaves_its_parent(one: str, other: str) -> None:
    folders = []
    for name in (one, other):
        try:
            folders.append(scheduled.folder_of(Path("r"), branch_name(name)))
        except DecantError:
            return
    assert (folders[0] == folders[1]) == (one == other)
    assert {folder.parent for folder in folders} == {Path("r/.dvc/tmp/scheduled")}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository in which another run works; clones do without DVC."""
    monkeypatch.setattr(worktrees, "_share", lambda *_: None)
    folder = workspace(tmp_path / "w", {})
    (folder / ".gitignore").write_text("/.dvc/tmp\n")
    other = folder / ".dvc" / "tmp" / "scheduled" / "nightly" / "precious"
    other.parent.mkdir(parents=True)
    other.write_text("of another run")
    return folder


def state_of(folder: Path) -> list[str]:
    """Return the files below .dvc/tmp and all refs."""
    files = [str(path) for path in sorted((folder / ".dvc" / "tmp").rglob("*")) if path.is_file()]
    return files + git(folder, "for-each-ref").splitlines()


@pytest.mark.parametrize(
    ("base", "branch"),
    [("main", branch) for branch in ("..", "", ".", "a..b", "my branch", "-D", "HEAD", "x.lock")]
    + [(base, "nightly") for base in ("", "-D", "--all", "nowhere", "main\n", "--output=x")]
    + [("main", "main"), ("main", "held/below"), ("main", "main/below")],
)
def test_a_wrong_name_is_refused_before_anything_is_touched(base: str, branch: str, repository: Path) -> None:
    git(repository, "branch", "held")
    before = state_of(repository)
    with pytest.raises(DecantError), scheduled.clone(repository, base, branch):
        pytest.fail("work began")
    assert state_of(repository) == before
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_two_runs_of_a_branch_do_not_disturb_each_other(repository: Path) -> None:
    with scheduled.clone(repository, "main", "nightly") as folder:
        (folder / "work").write_text("of hours")
        with (
            pytest.raises(DecantError, match="Another run works for the branch nightly"),
            scheduled.clone(repository, "main", "nightly"),
        ):
            pytest.fail("work began")
        with scheduled.clone(repository, "main", "night-ly") as other:
            assert other != folder
        assert (folder / "work").read_text() == "of hours"
    with scheduled.clone(repository, "main", "nightly") as again:
        assert not (again / "work").exists()


def test_a_result_that_cannot_be_kept_under_its_name_is_not_lost(repository: Path) -> None:
    with scheduled.clone(repository, "main", "nightly") as folder:
        (folder / "result").write_text("x")
        git(repository, "switch", "--quiet", "--create", "nightly")  # meanwhile
        with pytest.raises(DecantError, match="the result is the commit") as told:
            scheduled.keep(folder, "nightly", "Rebuilt")
    *_, commit = str(told.value).split()
    assert git(repository, "show", f"{commit}:result") == "x"


def test_a_clone_works_in_folders_whose_names_are_not_ascii(tmp_path: Path) -> None:
    cache = tmp_path / "Größe und Maß"
    folder = workspace(tmp_path / "ein Ordner für é", {})
    (folder / ".dvc" / "config.local").write_text(
        f"[core]\n    note = ü\n[cache]\n    dir = {cache}\n", "utf-8"
    )
    with scheduled.clone(folder, "main", "nächtlich") as clone:
        assert Path(worktrees.dvc(clone, "cache", "dir").strip()) == cache
        assert "note = ü" in (clone / ".dvc" / "config.local").read_text("utf-8")
        (clone / "result").write_text("x")
        assert scheduled.keep(clone, "nächtlich", "Rebuilt")
    assert git(folder, "show", "nächtlich:result") == "x"


def test_a_remote_may_have_a_slash_in_its_name(tmp_path: Path) -> None:
    origin = workspace(tmp_path / "origin", {})
    subprocess.run(
        ["git", "clone", "--quiet", "--origin", "team/one", str(origin), str(tmp_path / "w")], check=True
    )
    git(
        origin, "-c", "user.name=D", "-c", "user.email=d@example.org", "commit", "--allow-empty", "-qm", "new"
    )
    newest = git(origin, "rev-parse", "--short", "HEAD").strip()
    assert scheduled.commit_of(tmp_path / "w", "team/one/main") == newest
