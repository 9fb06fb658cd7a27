"""The rules of the layout, checked on the files."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import OPERATIONS, ROOT, closure, imported_by

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
FILES = sorted(
    path.relative_to(ROOT) for folder in ("tasks", "flows") for path in (ROOT / folder).rglob("*.py")
)


def members(name: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield command, deps and params of each member of a stage; every operation counts, used or not."""
    stage = STAGES[name]
    body = stage.get("do", stage)
    lists = (body.get("deps", []), [str(p) for p in body.get("params", [])])
    if "foreach" not in stage:
        yield body["cmd"], *lists
        return
    for operation in OPERATIONS:
        values = {"${key}": "some", "${item.op}": operation, "${item.from}": "teacher"}
        yield fill(body["cmd"], values), *([fill(x, values) for x in listed] for listed in lists)


def fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def code_of(command: str) -> set[Path]:
    """Return every file of ours that `python -m package …` imports."""
    python, option, package, *_ = command.split()
    assert (python, option) == ("python", "-m"), command
    return closure(Path(*package.split(".")) / "__main__.py")


def covered(file: Path, deps: list[str]) -> bool:
    return any(Path(dep) in (file, *file.parents) for dep in deps)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_file_that_the_stage_imports(stage: str) -> None:
    for command, deps, _ in members(stage):
        missing = sorted(str(file) for file in code_of(command) if not covered(file, deps))
        assert missing == [], f"add to the deps of {stage} ({command})"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_list_nothing_that_no_member_imports(stage: str) -> None:
    used = set().union(*(code_of(command) for command, _, _ in members(stage)))
    listed = {Path(dep) for _, deps, _ in members(stage) for dep in deps if dep.startswith("tasks/")}
    idle = sorted(str(dep) for dep in listed if not any(dep in (file, *file.parents) for file in used))
    assert idle == [], f"remove from the deps of {stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_is_a_dep_holds_nothing_that_its_stage_leaves_unread(stage: str) -> None:
    for command, deps, _ in members(stage):
        used = code_of(command)
        for dep in deps:
            for file in (ROOT / dep).rglob("*.py"):
                assert file.relative_to(ROOT) in used, f"{file} is a dep of {command} and not imported"


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_reads_the_test_split_but_the_last_ones(stage: str) -> None:
    shown = {"data/test.parquet", "predictions/teacher.npy"}
    reads = any(shown & set(map(str, deps)) for _, deps, _ in members(stage))
    assert reads == (stage in ("evaluate", "evaluate-teacher", "benchmark"))


@pytest.mark.parametrize("stage", STAGES)
def test_params_name_sections_that_there_are(stage: str) -> None:
    for _, _, params in members(stage):
        for name in params:
            assert name.split(".")[0] in PARAMS, f"{stage} depends on {name}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_who_may_import_whom(file: Path) -> None:
    names = imported_by(file)
    roots = {name.split(".")[0] for name in names}
    if file.parts[0] == "tasks":
        assert not roots & {"flows", "prefect", "dvc"}
    else:
        assert "torch" not in roots
    if file.parts[0] == "tasks" and len(file.parts) > 2 and file.parts[1] != "validate":
        own = file.parts[1]
        folders = {path.name for path in (ROOT / "tasks").iterdir() if path.is_dir()} - {own}
        foreign = {name for name in names if name.startswith("tasks.") and name.split(".")[1] in folders}
        assert foreign == set(), f"operations never import operations: move it up to tasks/: {foreign}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_modules_say_what_they_hold(file: Path) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{file} has no docstring"
    assert file.stem not in ("utils", "util", "helpers", "common", "base", "misc")
    # Prefect's settings precede its import, and a stage's excepthook precedes the imports of the stage.
    if file.name == "__init__.py" and file.parent.name not in ("flows", "tasks"):
        assert len(tree.body) == 1, f"{file} holds a docstring and no imports"


def test_operations_are_those_that_params_can_name() -> None:
    with_block = {
        path.parent.name
        for path in (ROOT / "tasks").glob("*/params.py")
        if "Block" in path.read_text(encoding="utf-8")
    }
    assert with_block == set(OPERATIONS)


def test_preparing_does_not_load_torch_and_tasks_never_load_prefect() -> None:
    code = (
        "import sys, tasks.prepare.__main__; assert 'torch' not in sys.modules;"
        "import tasks.validate.__main__; assert not {'prefect', 'dvc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": ""})
