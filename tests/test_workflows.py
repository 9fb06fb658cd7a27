"""What GitHub and pre-commit run: the files are valid, what they call exists, versions are the lock's."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from dvc.repo.install import pre_commit_install

from tests.clones import commit, isolated
from tests.imports import ROOT
from tests.test_compare import PROJECT, git, row, write

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(path.name for path in FOLDER.iterdir())
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HOOKS_FILE = ROOT / ".pre-commit-config.yaml"
HOOKS: dict[str, Any] = yaml.safe_load(HOOKS_FILE.read_text(encoding="utf-8"))


def steps(name: str) -> list[dict[str, Any]]:
    (job,) = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["jobs"].values()
    listed: list[dict[str, Any]] = job["steps"]
    return listed


def locked(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return str(version)


def test_there_are_the_checks_and_the_comparison() -> None:
    assert WORKFLOWS == ["checks.yml", "compare.yml"]
    assert ".github/workflows/checks.yml" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert ".github/workflows/compare.yml" in (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_calls_exists(name: str) -> None:
    text = "\n".join(step.get("run", "") for step in steps(name))
    if ".ci/run" in text:
        assert os.access(ROOT / ".ci" / "run", os.X_OK)
        text += (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)$", text, re.MULTILINE)
    assert targets, "it calls nothing"
    assert [target for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []
    modules = re.findall(r"python -m (\S+)", text)
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_works_in_a_fork(name: str) -> None:
    """It needs no secret, ends by itself, and has the Python and the cache that the lock file is for."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    (job,) = workflow["jobs"].values()
    assert "secrets." not in text
    assert "pull_request" in workflow[True]  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"]["contents"] == "read"
    assert 0 < job["timeout-minutes"] <= 60
    (python,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert python == {"python-version": "3.11", "cache": "pip", "cache-dependency-path": "requirements.lock"}


def test_the_checks_are_all_of_ci() -> None:
    assert steps("checks.yml")[-1] == {"run": ".ci/run"}


def test_the_comparison_has_the_base_and_comments_only_where_it_may() -> None:
    first, *_, comment = steps("compare.yml")
    assert first["with"]["fetch-depth"] == 0
    assert "head.repo.full_name == github.repository" in comment["if"]
    assert comment["continue-on-error"] is True


@pytest.mark.parametrize(
    ("accuracy", "revision", "code", "summary"),
    [
        (0.94, "main", 0, "int8"),
        (0.92, "main", 1, "int8"),
        (0.94, "nowhere", 2, "Could not be compared"),
    ],
)
def test_the_gates_decide_over_the_job(
    accuracy: float, revision: str, code: int, summary: str, tmp_path: Path
) -> None:
    """The step of the workflow itself, run as GitHub runs it: its exit code is the comparison's."""
    project(tmp_path)
    write(tmp_path, "int8", row(accuracy=accuracy))
    (step,) = (step for step in steps("compare.yml") if step.get("name") == "Compare")
    page = tmp_path / "summary.md"
    variables = isolated() | {"PYTHONPATH": str(ROOT), "REVISION": revision, "GITHUB_STEP_SUMMARY": str(page)}
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=tmp_path,
        env=variables,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("::error::" in done.stdout) == (code != 0)
    assert summary in page.read_text(encoding="utf-8")


def project(folder: Path) -> None:
    """Make a repository with a teacher and one model, committed on main, whose `.venv` is this one."""
    (folder / "metrics").mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(PROJECT))
    (folder / "dvc.yaml").write_text('stages: {a: {cmd: "true"}}\n')
    for model in ("teacher", "int8"):
        write(folder, model, row())
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "first")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)


def test_the_hooks_have_the_versions_of_the_lock_file() -> None:
    versions = {entry["repo"].rpartition("/")[2]: entry["rev"] for entry in HOOKS["repos"]}
    assert versions["ruff-pre-commit"] == f"v{locked('ruff')}"
    assert versions["dvc"] == locked("dvc")


def test_dvcs_hooks_are_those_that_dvc_would_write(tmp_path: Path) -> None:
    copied = tmp_path / HOOKS_FILE.name
    copied.write_text(HOOKS_FILE.read_text(encoding="utf-8"), encoding="utf-8")
    pre_commit_install(
        SimpleNamespace(root_dir=str(tmp_path))
    )  # what `dvc install --use-pre-commit-tool` calls
    assert yaml.safe_load(copied.read_text(encoding="utf-8")) == HOOKS


def test_style_and_large_files_are_looked_at() -> None:
    names = {hook["id"] for entry in HOOKS["repos"] for hook in entry["hooks"]}
    assert {"ruff-check", "ruff-format", "check-added-large-files"} <= names


def test_pushing_needs_no_remote_unless_one_asks_for_it() -> None:
    """`dvc push` fails without a remote, so `pre-commit install` alone does not install that hook."""
    assert HOOKS["default_install_hook_types"] == ["pre-commit", "post-checkout"]
    assert ".pre-commit-config.yaml" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
