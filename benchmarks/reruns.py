"""What an edit of the code reruns: computed from imports, dvc.yaml and params.yaml; nothing runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.pipeline.params import read_yaml
from tasks.pipeline.record import OURS, closure, meaning_of

EDITS = {
    "the exporter": "decant/export/deploy.py",
    "a kernel of the exporter": "decant/export/kernels.py",
    "the report's table": "tasks/report/tables.py",
    "the gates": "tasks/validate/gates.py",
    "the measure of accuracy": "tasks/evaluate/accuracy.py",
    "a corruption of pictures": "decant/evidence/pictures.py",
    "a method of explaining": "decant/explanations/perturbations.py",
    "the counts of MACs and zeros": "decant/costs/counts.py",
    "calibration ranges": "decant/calibration/ranges.py",
    "Hessians of inputs": "decant/reconstruction/hessians.py",
    "folding": "decant/lowering/folding.py",
    "a loss": "decant/training/losses.py",
    "the training loop": "decant/training/fit.py",
    "a pruning criterion": "decant/prune/criteria.py",
    "GPTQ": "decant/quantize/rounding/gptq.py",
    "the base of all schemas": "decant/schema.py",
}
"""What is edited, and where: a statement is added to each of these files."""

CODE = "data/code"
SAME_BYTES = ("data/params.valid", "data/files")
"""What `validate` writes: the same bytes whatever its code says, so nothing that reads it reruns."""
TRAINS = Path("decant/training/fit.py")


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, or one member of a stage that has a member for each model.

    Attributes:
        name: Such as `compress@int8`.
        deps: The paths that it reads.
        outs: The paths that it writes, metrics included.
        trains: Whether a section of params.yaml that is its own has a training in it.
    """

    name: str
    deps: frozenset[str]
    outs: frozenset[str]
    trains: bool

    @property
    def operation(self) -> str:
        """The operation whose code it runs; empty for `code` itself."""
        records = [dep for dep in self.deps if dep.startswith(f"{CODE}/")]
        return PurePosixPath(records[0]).name if records else ""


@dataclass(frozen=True)
class Reruns:
    """What an edit reruns.

    Attributes:
        operations: Those that consist of the edited code.
        stages: Those of these operations, and at most all that descend from them.
        trainings: The stages among them that train.
    """

    operations: Sequence[str]
    stages: Sequence[str]
    trainings: Sequence[str]


@dataclass(frozen=True)
class Pipeline:
    """The operations with their files, and the stages that run them.

    Attributes:
        root: The folder of the repository.
        code: The files of ours that each operation imports.
        stages: Of dvc.yaml, but the stage `code`.
    """

    root: Path
    code: Mapping[str, frozenset[Path]]
    stages: Sequence[Stage]

    @classmethod
    def read(cls, root: Path) -> Pipeline:
        """Return the pipeline of a checkout."""
        code = {
            path.parent.name: frozenset(closure(path.relative_to(root), root))
            for path in sorted(root.glob("tasks/*/__main__.py"))
        }
        dvc, params = (read_yaml(root / name, shared=True) for name in ("dvc.yaml", "params.yaml"))
        return cls(root, code, [stage for stage in _stages(dvc["stages"], params) if stage.operation])

    def after(self, texts: Mapping[Path, str]) -> Reruns:
        """Return what reruns once these files, relative to the root, have these texts."""
        changed = {file for file, text in texts.items() if meaning_of(text) != meaning_of(self._text(file))}
        operations = [name for name, files in self.code.items() if files & changed]
        stale = {stage.name: stage for stage in self.stages if stage.operation in operations}
        while more := {
            stage.name: stage
            for stage in self.stages
            if stage.name not in stale and any(_reads(stage, before) for before in stale.values())
        }:
            stale |= more
        # In the order of dvc.yaml
        names = [stage.name for stage in self.stages if stage.name in stale]
        trainings = [name for name in names if self._trains(stale[name])]
        return Reruns([name for name in operations if name != "code"], names, trainings)

    def edited(self, file: str) -> Reruns:
        """Return what another behaviour of a file reruns."""
        return self.after({Path(file): f"{self._text(Path(file))}\nanother = True\n"})

    def reworded(self) -> Reruns:
        """Return what reruns if all docstrings, comments and error sentences of all files are others."""
        files = [path.relative_to(self.root) for top in OURS for path in (self.root / top).rglob("*.py")]
        return self.after({file: reworded(self._text(file)) for file in files})

    def _text(self, file: Path) -> str:
        return (self.root / file).read_text(encoding="utf-8")

    def _trains(self, stage: Stage) -> bool:
        return stage.trains and TRAINS in self.code[stage.operation]


def reworded(source: str) -> str:
    """Return a file with other docstrings and sentences of errors, another layout and no comments."""
    return ast.unparse(_Rewording().visit(ast.parse(source)))


def table(root: Path) -> str:
    """Return the table of README.md: for each edit its operations, stages and trainings."""
    pipeline = Pipeline.read(root)
    total = len(pipeline.stages)
    rows = [
        "| an edit of | in | reruns | stages | trainings |",
        "| --- | --- | --- | ---: | ---: |",
        _row("a docstring, a comment, the sentence of an error", "any file", pipeline.reworded(), total),
        *(_row(what, f"`{file}`", pipeline.edited(file), total) for what, file in EDITS.items()),
    ]
    return "\n".join(rows) + "\n"


def _row(what: str, place: str, found: Reruns, total: int) -> str:
    operations = ", ".join(f"`{name}`" for name in found.operations) or "nothing"
    if len(found.stages) == total:
        operations = "everything"
    return f"| {what} | {place} | {operations} | {len(found.stages)} | {len(found.trainings)} |"


def _reads(stage: Stage, before: Stage) -> bool:
    """Say whether a stage reads what another one writes: the same path, a folder of it or a file in it."""
    return any(
        f"{dep}/".startswith(f"{out}/") or f"{out}/".startswith(f"{dep}/")
        for dep in stage.deps
        for out in before.outs - {*SAME_BYTES}
    )


def _stages(entries: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Stage]:
    for name, entry in entries.items():
        if "foreach" not in entry:
            yield _stage(name, entry, {}, params)
            continue
        for key, item in params[entry["foreach"].strip("${}")].items():
            values = {"key": key, **{f"item.{field}": value for field, value in item.items()}}
            yield _stage(f"{name}@{key}", entry["do"], values, params)


def _stage(
    name: str, entry: Mapping[str, Any], values: Mapping[str, Any], params: Mapping[str, Any]
) -> Stage:
    def paths(*kinds: str) -> frozenset[str]:
        listed = [one for kind in kinds for one in entry.get(kind, ())]
        names = [next(iter(one)) if isinstance(one, dict) else one for one in listed]
        return frozenset(re.sub(r"\$\{(.*?)\}", lambda match: str(values[match[1]]), path) for path in names)

    trains = any(_trains(_section(params, dotted)) for dotted in paths("params"))
    return Stage(name, paths("deps"), paths("outs", "metrics", "plots"), trains)


def _section(params: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        params = params[key]
    return params


def _trains(section: Any) -> bool:
    return isinstance(section, dict) and ("training" in section or any(map(_trains, section.values())))


class _Rewording(ast.NodeTransformer):
    """Put other words where a docstring or the sentence of an error stands."""

    raising = False

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self._reworded(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        is_message = isinstance(node.returns, ast.Name) and node.returns.id == "Message"
        return self._reworded(node) if is_message else self.generic_visit(node)

    def _reworded(self, node: ast.AST) -> ast.AST:
        before, self.raising = self.raising, True
        self.generic_visit(node)
        self.raising = before
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("other words") if self.raising else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("other words") if self.raising and isinstance(node.value, str) else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Expr(ast.Constant("Other words."))
        return self.generic_visit(node)
