"""What the code of an operation is: behaviour, and all files that it imports, but no words."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import readme, reruns
from benchmarks.reruns import EDITS, Pipeline, reworded, table
from tasks.code import __main__ as code
from tasks.pipeline.record import closure, meaning_of, record
from tests.imports import ROOT

SOURCE = '''\
"""Docs of the module."""

import math
from typing import Literal

LIMIT = 3  # the most
WORDS = "some words"


class Sizes(Section):
    """Docs of the class."""

    kind: Literal["sizes"] = "sizes"
    count: int = 4
    """Docs of the field."""

    def total(self, values: list[float], *, scaled: bool = False) -> float:
        """Docs of the method."""
        if len(values) > LIMIT:
            raise ValueError(f"at most {LIMIT} values, got {len(values)!r}")
        try:
            total = math.fsum(values)
        except OverflowError as error:
            raise DecantError("too large a value: " + str(error)) from None
        print("summed")
        return total / self.count if scaled else total


def _sentence(count: int) -> Message:
    return f"{count} are wrong" if count else "none is wrong"
'''
NO_CHANGE = {
    "a comment": ("  # the most", "  # no more than that"),
    "a comment more": ("import math", "# For sums.\nimport math"),
    "an empty line": ("LIMIT = 3", "\n\nLIMIT = 3"),
    "a line break": ("math.fsum(values)", "math.fsum(\n                values\n            )"),
    "parentheses": ("LIMIT = 3", "LIMIT = (3)"),
    "quotes": ('"some words"', "'some words'"),
    "the module's docstring": ("Docs of the module.", "Other docs."),
    "no module docstring": ('"""Docs of the module."""\n', ""),
    "the class's docstring": ("Docs of the class.", "Other docs."),
    "the field's docstring": ("Docs of the field.", "Other docs."),
    "the method's docstring": (
        "Docs of the method.",
        "Other docs.\n\n        Raises:\n            ValueError: Yes.",
    ),
    "a docstring more": ('WORDS = "some words"', 'WORDS = "some words"\n"""Said where?"""'),
    "an error's sentence": ("too large a value: ", "a value is too large: "),
    "an error's sentence with values": ("at most {LIMIT} values, got {len(values)!r}", "not {values}"),
    "a message": ("{count} are wrong", "wrong are {count}"),
    "another message": ("none is wrong", "all are right"),
}
CHANGES = {
    "a number": ("LIMIT = 3", "LIMIT = 4"),
    "a number's type": ("count: int = 4", "count: int = 4.0"),
    "a word that is computed with": ('"some words"', '"other words"'),
    "a word that is printed": ('"summed"', '"added"'),
    "a kind": ('Literal["sizes"]', 'Literal["size"]'),
    "a default": ("scaled: bool = False", "scaled: bool = True"),
    "an annotation, which a schema reads": ("count: int", "count: float"),
    "an operator": ("total / self.count", "total // self.count"),
    "a comparison": ("> LIMIT", ">= LIMIT"),
    "when it raises": ("len(values) > LIMIT", "len(values) > LIMIT + 1"),
    "what it raises": ("raise ValueError(", "raise TypeError("),
    "what an error comes from": ("from None", "from error"),
    "what it catches": ("except OverflowError", "except ValueError"),
    "a function that is called": ("math.fsum", "sum"),
    "a branch": ("if scaled else", "if not scaled else"),
    "another import": ("import math", "import cmath as math"),
    "a statement less": ('        print("summed")\n', ""),
    "a statement more": ("LIMIT = 3", "LIMIT = 3\nLIMIT += 1"),
    "the order of statements": (
        'LIMIT = 3  # the most\nWORDS = "some words"',
        'WORDS = "some words"\nLIMIT = 3',
    ),
    "a decorator": ("    def total", "    @cached\n    def total"),
    "a base class": ("class Sizes(Section)", "class Sizes(Block)"),
    "when there is a message": ("if count else", "if not count else"),
    "no message any more": ("-> Message", "-> str"),
    "a parameter's name": ("scaled", "divided"),
}


def edited(old: str, new: str) -> str:
    assert old in SOURCE
    return SOURCE.replace(old, new)


@pytest.mark.parametrize("edit", NO_CHANGE.values(), ids=NO_CHANGE)
def test_words_and_layout_are_no_change(edit: tuple[str, str]) -> None:
    assert meaning_of(edited(*edit)) == meaning_of(SOURCE)


@pytest.mark.parametrize("edit", CHANGES.values(), ids=CHANGES)
def test_behaviour_is_a_change(edit: tuple[str, str]) -> None:
    assert meaning_of(edited(*edit)) != meaning_of(SOURCE)


# --- on all of our own files

FILES = sorted(path for folder in ("decant", "tasks") for path in (ROOT / folder).rglob("*.py"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in FILES}
once = cache(meaning_of)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_has_words_that_count(file: Path) -> None:
    other = reworded(TEXTS[file])
    assert ("Other words." in other) == (ast.get_docstring(ast.parse(TEXTS[file])) is not None)
    assert once(other) == once(TEXTS[file])


def changeable(tree: ast.AST) -> list[ast.AST]:
    """Return the nodes of a tree that `change` can change: outside errors, where a string is but words."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_message = isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or tree) == "Message"
        if isinstance(node, ast.Raise | ast.JoinedStr) or is_docstring or is_message:
            continue
        waiting += ast.iter_child_nodes(node)
        kinds = (
            ast.Name | ast.Attribute | ast.keyword | ast.BinOp | ast.Compare | ast.FunctionDef | ast.Constant
        )
        if isinstance(node, kinds) and not (isinstance(node, ast.keyword) and node.arg is None):
            found.append(node)
    return found


def change(node: ast.AST) -> None:
    """Change what a node says, in place."""
    match node:
        case ast.Name():
            node.id += "_other"
        case ast.Attribute():
            node.attr += "_other"
        case ast.keyword(arg=str()):
            node.arg = f"{node.arg}_other"
        case ast.BinOp():
            node.op = ast.Mod() if isinstance(node.op, ast.Pow) else ast.Pow()
        case ast.Compare():
            node.ops[0] = ast.IsNot() if isinstance(node.ops[0], ast.Is) else ast.Is()
        case ast.FunctionDef():
            node.name += "_other"
        case ast.Constant():
            node.value = "other" if node.value is None else None


@given(st.data())
def test_any_change_of_any_file_counts(data: st.DataObject) -> None:
    tree = ast.parse(TEXTS[data.draw(st.sampled_from(FILES))])
    before, nodes = meaning_of(ast.unparse(tree)), changeable(tree)
    if nodes:
        change(nodes[data.draw(st.integers(0, len(nodes) - 1))])
        assert meaning_of(ast.unparse(tree)) != before


# --- which files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two operations that import this and that."""
    files = {
        "tasks/one/__main__.py": "def main():\n    from decant import late\n    import decant.under.name",
        "tasks/two/__main__.py": "import os, yaml\nfrom decant import plain\nfrom tests import conftest",
        "decant/late.py": "from decant.under import inner",
        "decant/plain.py": "import decant.late_not_there\nvalue = 1",
        "decant/idle.py": "value = 1",
        "decant/under/inner.py": "import typing\nif typing.TYPE_CHECKING:\n    import decant.shown",
        "decant/under/name.py": "from decant.late import value",
        "decant/shown.py": "value = 1",
        "tests/conftest.py": "value = 1",
        "os.py": "value = 1",
    }
    for package in ("tasks", "tasks/one", "tasks/two", "decant", "decant/under", "tests"):
        files[f"{package}/__init__.py"] = f'"""{package}."""'
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def names(files: set[Path]) -> list[str]:
    return sorted(file.as_posix() for file in files)


def test_imports_in_functions_and_the_files_of_packages_belong_to_it(root: Path) -> None:
    assert names(closure(Path("tasks/one/__main__.py"), root)) == [
        "decant/__init__.py",
        "decant/late.py",
        "decant/shown.py",
        "decant/under/__init__.py",
        "decant/under/inner.py",
        "decant/under/name.py",
        "tasks/__init__.py",
        "tasks/one/__init__.py",
        "tasks/one/__main__.py",
    ]


def test_libraries_tests_and_files_that_are_not_imported_do_not(root: Path) -> None:
    assert names(closure(Path("tasks/two/__main__.py"), root)) == [
        "decant/__init__.py",
        "decant/plain.py",
        "tasks/__init__.py",
        "tasks/two/__init__.py",
        "tasks/two/__main__.py",
    ]


def test_a_record_has_a_sum_and_a_path_for_each_file(root: Path) -> None:
    lines = [line.split("  ") for line in record("one", root).splitlines()]
    assert [path for _, path in lines] == names(closure(Path("tasks/one/__main__.py"), root))
    assert all(found == meaning_of((root / path).read_text()) for found, path in lines)
    assert all(len(found) == 16 for found, _ in lines)


def test_the_stage_writes_a_record_for_each_operation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    code.main()
    assert {path.name: path.read_text() for path in Path("data/code").iterdir()} == {
        name: record(name, root) for name in ("one", "two")
    }


LOADED = """
import importlib, os, pathlib, sys
import torch, onnxruntime, pyarrow, yaml, pydantic, safetensors, matplotlib
for operation in sorted(path.parent.name for path in pathlib.Path("tasks").glob("*/__main__.py")):
    if not os.fork():
        importlib.import_module(f"tasks.{operation}.__main__")
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        print(operation, *(pathlib.Path(file).as_posix() for file in files if file), sep="|", flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow  # what is imported anywhere in a file: tests/test_architecture.py
def test_whatever_an_operation_loads_is_in_its_record() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    loaded = {
        operation: files for operation, *files in (line.split("|") for line in done.stdout.splitlines())
    }
    assert set(loaded) == {path.parent.name for path in ROOT.glob("tasks/*/__main__.py")}
    for operation, files in loaded.items():
        code = closure(Path("tasks", operation, "__main__.py"), ROOT)
        ours = {Path(file) for file in files} & set(FILES)
        assert ours - {ROOT / file for file in code} == set(), operation
        assert ROOT / "decant" / "errors.py" in ours


# --- what an edit reruns


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    """The checkout's, in which each text is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reruns, "meaning_of", once)
        yield Pipeline.read(ROOT)


@pytest.mark.usefixtures("pipeline")
def test_the_table_of_the_readme_is_what_the_imports_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    expected = readme.between(text, readme.RERUNS_BEGIN, table(ROOT), readme.RERUNS_END)
    assert text == expected, "run `python -m benchmarks.readme`"


@pytest.mark.parametrize(
    "file", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("decant/export/*.py"))
)
def test_an_edit_of_the_exporter_reruns_what_asks_the_exported_alone(file: str, pipeline: Pipeline) -> None:
    found = pipeline.edited(file)
    # What times single layers is asked by its name: its times are read from a file ever after.
    expected = [] if file.endswith("/layer_timing.py") else ["benchmark"]
    # What a host's ONNX Runtime can do is told before anything runs, too.
    asking = [task for task in ("explain", "validate") if Path(file) in pipeline.code[task]]
    assert found.operations == expected + asking
    follow = {"explain": ["explain", "explain-teacher", "illustrate"], "validate": ["validate"]}
    after = {name for task in asking for name in follow[task]}
    assert {name.partition("@")[0] for name in found.stages} == {*expected, *after}
    assert found.trainings == []


def test_what_some_edits_rerun(pipeline: Pipeline) -> None:
    models = [stage.name.removeprefix("compress@") for stage in pipeline.stages if stage.name[:4] == "comp"]
    assert pipeline.edited("tasks/report/tables.py").stages == ["report"]
    assert pipeline.edited("tasks/validate/gates.py").stages == ["validate"]
    assert pipeline.edited("tasks/evaluate/accuracy.py").stages == [
        "evaluate-teacher",
        *(f"evaluate@{name}" for name in models),
        "stability-teacher",
        *(f"stability@{name}" for name in models),
        "illustrate",
        "report",
    ]
    everything = [stage.name for stage in pipeline.stages]
    assert pipeline.edited("decant/schema.py").stages == everything
    assert pipeline.edited("tasks/prepare/idx.py").stages == everything[1:]  # `validate` reads no images
    loop = pipeline.edited("decant/training/fit.py")
    assert "teacher" in loop.trainings
    assert "teacher" not in pipeline.edited("decant/training/losses.py").stages
    assert len(loop.stages) == len(everything) - 2  # neither `validate` nor `prepare`


def test_the_words_of_no_file_rerun_anything(pipeline: Pipeline) -> None:
    found = pipeline.reworded()
    assert found.operations == found.stages == []


def test_a_new_file_that_nothing_imports_reruns_nothing(pipeline: Pipeline) -> None:
    files = {path.relative_to(ROOT) for path in FILES}
    idle = {file.as_posix() for file in files - set().union(*pipeline.code.values())}
    # Asked for by its name, once for each processor; and the page, which is no output of a stage: it shows
    # times.
    assert {file for file in idle if not file.startswith("tasks/report/page/")} == {
        "decant/export/layer_timing.py"
    }
    # What networks of users are made of: `validate` writes its sum, which stages with such a network read.
    assert pipeline.edited("decant/networks/sound.py").stages == ["validate"]


def test_every_edit_of_the_table_is_of_a_file_that_there_is() -> None:
    assert [file for file in EDITS.values() if not (ROOT / file).is_file()] == []


def test_sums_are_short_and_repeat() -> None:
    assert meaning_of(SOURCE) == meaning_of(SOURCE)
    assert len(meaning_of("")) == 16
    assert meaning_of("") == sha256(ast.dump(ast.parse("")).encode()).hexdigest()[:16]
