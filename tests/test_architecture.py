"""The rules of the layout, checked on the files."""

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

import pytest
import yaml

from decant.compression.finish import Result
from tasks.pipeline import record
from tests.imports import OPERATIONS, ROOT, closure, file_of, imported_by, modules_of, nodes_of, parsed

LAYERS = (
    ("errors", "lazy", "meaning", "progress", "seeds"),  # no torch; lazy imports it at its first use
    ("memory", "outputs", "row_groups", "schema"),
    ("inputs", "sealed", "targets"),
    ("examples",),
    ("recipes", "networks"),
    ("checkpoints",),
    ("costs", "lowering", "reconstruction"),
    ("compression",),
    ("calibration", "training", "export", "adoption", "evidence", "explanations"),
    OPERATIONS,
)
"""The files and folders of decant/. Each imports only what stands in a line above its own."""

TORCHLESS = ("errors", "meaning", "memory", "progress", "outputs", "seeds", "schema", "sealed", "recipes")
FOR_FLOWS = {
    "decant/errors.py",
    "decant/outputs.py",
    "decant/schema.py",
    "decant/sealed.py",
    "tasks/pipeline/lockfile.py",
    "tasks/pipeline/metrics.py",
    "tasks/pipeline/params.py",
    "tasks/pipeline/yaml_reader.py",
    "tasks/validate/gates.py",
}
"""All that flows may import of the rest."""

LIBRARIES_OF_THE_PIPELINE = ("prefect", "dvc", "yaml", "ruamel", "pyarrow", "matplotlib", "altair", "jinja2")
"""What decant imports without."""

ASKED_BY_NAME = {"decant/prune/channels/latency.py", "tasks/teacher/adopted.py"}
"""Who may import a module by its name, which no record of code follows."""

RUNS_OTHERS = {"decant/networks/python.py"}
"""Who may run a file that is none of ours: one that its user names, and that Git tracks."""

RAISED_LATER = {
    "decant/adoption/weights.py": "all that does not fit in a file of weights, at once",
    "decant/export/accelerated.py": "why a GPU does not suit, then raised",
    "decant/export/semi_structured.py": "why a device or a network does not suit, then raised",
    "decant/memory.py": "asked whether it is too little memory, then raised",
    "decant/networks/devices.py": "asked whether a kernel does not repeat its bits, then raised",
    "decant/networks/faults.py": "asked whether it is told already, then raised",
    "decant/networks/processes.py": "asked whether memory ran out, then raised",
    "decant/networks/python.py": "what a file lacks, raised or told with all that is wrong with params.yaml",
    "decant/training/fit.py": "why a recipe does not suit a device, then raised",
    "decant/training/loading.py": "asked whether a process that reads ended, then raised",
    "tasks/teacher/adopted.py": "printed: why a network has no ONNX file",
    "tasks/validate/hardware.py": "mistakes in params.yaml, all at once",
    "tasks/validate/layers.py": "mistakes in params.yaml, all at once",
    "tasks/validate/networks.py": "mistakes in params.yaml, all at once",
    "tasks/validate/teachers.py": "mistakes in params.yaml, all at once",
    "decant/schema.py": "mistakes of a section, all at once",
    "tasks/benchmark/exports.py": "models without an export, all at once at the end",
    "tasks/benchmark/hardware.py": "why a GPU does not suit, then raised",
    "tasks/benchmark/times.py": "printed: why a model is not packed",
    "tasks/benchmark/tables.py": "printed: why times are measured anew",
    "tasks/pipeline/arrays.py": "asked whether the disk is full, then raised",
    "tasks/pipeline/yaml_reader.py": "the message of the YAML parser, made shorter",
    "tasks/prepare/files.py": "all ways to the files that failed",
    "tasks/prepare/own_files.py": "pictures or sounds that cannot be read, all at once: raised, or printed",
    "tasks/report/page/evidence.py": "stands on the page in the place of what cannot be read",
    "tasks/report/page/models.py": "stands on the page in the place of what cannot be read",
    "tasks/report/page/times.py": "stands on the page in the place of what cannot be read",
    "tasks/prepare/readers.py": "asked which column of CSV it is about, then raised",
    "tasks/validate/chains.py": "mistakes in params.yaml, all at once",
    "tasks/validate/gates.py": "mistakes in params.yaml, all at once",
    "tasks/validate/recipes.py": "mistakes in params.yaml, all at once",
}
"""Where an error's sentence is kept in a variable, and what for: each of them is raised or printed."""

READS_TEST_SPLIT = {
    "benchmark",
    "illustrate",  # the folder that both read has what the teacher answers too
    "report",
    *(f"{stage}{who}" for stage in ("evaluate", "stability", "explain") for who in ("", "-teacher")),
}

ANSWERS = Path("tasks/pipeline/predictions.py")
"""What models answer on the test split."""

LAZY_INIT = ast.dump(
    ast.parse(
        "import lazy_loader\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)"
    )
)

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("decant", "tasks", "flows")
    for path in (ROOT / folder).rglob("*.py")
)
LIBRARY = [file for file in FILES if file.parts[0] == "decant"]
RECORDED = [file for file in FILES if file.parts[0] in record.OURS]


# --- who may import whom


def layer_of(file: Path) -> int:
    """Return the line of LAYERS that a file of decant/ stands in."""
    name = file.with_suffix("").parts[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def test_every_file_and_folder_of_the_library_stands_in_one_layer() -> None:
    found = {file.with_suffix("").parts[1] for file in LIBRARY if file != Path("decant/__init__.py")}
    assert sorted(name for names in LAYERS for name in names) == sorted(found)


def test_the_library_imports_what_stands_above() -> None:
    for file, other in [(each, other) for each in LIBRARY for other in modules_of(each)]:
        assert other.parts[0] == "decant", f"{file} imports {other}"
        if other.parts[1] != file.parts[1]:
            assert layer_of(other) < layer_of(file), f"{file} imports {other}"


def test_operations_import_neither_one_another_nor_the_exporter() -> None:
    for operation in OPERATIONS:
        others = {"export", *OPERATIONS} - {operation}
        foreign = {
            file for file in closure(Path("decant", operation, "operation.py")) if file.parts[1] in others
        }
        assert foreign == set(), operation


@pytest.mark.parametrize("folder", ["decant", "tasks", "flows"])
def test_who_may_import_whom(folder: str) -> None:
    for file in (file for file in FILES if file.parts[0] == folder):
        roots = {name.split(".")[0] for name in imported_by(file)}
        foreign = {path for path in modules_of(file) if path.parts[:2] != file.parts[:2]}
        if folder == "flows":
            assert "torch" not in roots, file
            rest = {str(path) for path in modules_of(file) if path.parts[0] != "flows"}
            assert rest <= FOR_FLOWS, f"{file}: flows know errors, files, the schema and params.yaml"
            continue
        assert not roots & {"flows", "prefect", "dvc"}, file
        others = {path for path in foreign if path.parts[0] == "tasks"}
        if folder == "tasks" and file.parts[1] != "validate":
            assert {path.parts[1] for path in others} <= {"pipeline"}, f"{file}: no stage imports another one"
        elif folder == "tasks":  # it reads every schema
            schemas = {"params.py", "sources.py"}
            found = {path for path in others if path.parts[1] != "pipeline" and path.name not in schemas}
            assert found == set(), file


def test_what_flows_may_import_brings_no_torch() -> None:
    for name in FOR_FLOWS:
        for file in closure(Path(name)):
            assert "torch" not in {imported.split(".")[0] for imported in imported_by(file)}, file


@pytest.mark.parametrize("name", TORCHLESS)
def test_the_first_layers_import_no_torch(name: str) -> None:
    for file in closure(Path("decant", f"{name}.py")):
        assert "torch" not in {imported.split(".")[0] for imported in imported_by(file)}


def test_the_library_knows_no_library_of_the_pipeline() -> None:
    foreign = {*LIBRARIES_OF_THE_PIPELINE, "tasks", "flows"}
    for file in LIBRARY:
        assert not {name.split(".")[0] for name in imported_by(file)} & foreign, file


BLOCKED = """
import importlib, pathlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
files = sorted(pathlib.Path("decant").rglob("*.py"))
names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted(set({blocked}) & set(sys.modules)))
"""


def test_the_library_imports_without_the_libraries_of_the_pipeline() -> None:
    code = BLOCKED.format(blocked=(*LIBRARIES_OF_THE_PIPELINE, "tasks", "flows"))
    assert run_python(code) == f"{len(LIBRARY)}\n"


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, env=environment, capture_output=True, text=True
    )
    return done.stdout


def test_imports_run_in_no_circle() -> None:
    finished: set[Path] = set()

    def visit(file: Path, line: tuple[Path, ...]) -> None:
        assert file not in line, " → ".join(map(str, (*line[line.index(file) :], file)))
        if file not in finished:
            for other in modules_of(file):
                visit(other, (*line, file))
            finished.add(file)

    for file in FILES:
        visit(file, ())
    assert finished >= set(FILES)


def test_some_stages_load_no_torch_and_none_loads_prefect() -> None:
    assert (
        run_python(
            "import sys;"
            "from tasks.prepare import __main__; from tasks.validate import __main__;"
            "from tasks.report import __main__; from tasks.code import __main__;"
            "print(sorted({'torch', 'prefect', 'dvc'} & set(sys.modules)))"
        )
        == "[]\n"
    )


# --- what the record of code relies on


def test_what_is_imported_from_a_package_is_a_module() -> None:
    """A name that a package resolves at its first use would bring files that no record of code has."""
    for file, node in [(each, node) for each in FILES for node in nodes_of(each)]:
        if isinstance(node, ast.ImportFrom) and file_of(f"{node.module}.__init__") is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert [name for name in names if file_of(name) is None] == [], f"{file}:{node.lineno}"


def test_nothing_is_imported_or_run_by_name_and_no_docstring_is_read() -> None:
    for file in RECORDED:
        names = {node.id for node in nodes_of(file) if isinstance(node, ast.Name)}
        assert not names & {"__import__", "exec", "eval"}, file  # a module's `eval()` is torch's
        attributes = {node.attr for node in nodes_of(file) if isinstance(node, ast.Attribute)}
        used = names | attributes | {name.rpartition(".")[2] for name in imported_by(file)}
        assert not used & {"__doc__", "getdoc", "runpy", "pkgutil", "reload"}, file
        assert ("spec_from_file_location" in used) == (str(file) in RUNS_OTHERS), file
        assert ("import_module" in used) == (str(file) in ASKED_BY_NAME), file


@pytest.mark.parametrize("operation", sorted(path.parent.name for path in ROOT.glob("tasks/*/__main__.py")))
def test_the_record_of_an_operation_is_every_file_that_it_imports_and_no_other(operation: str) -> None:
    main = Path("tasks", operation, "__main__.py")
    assert record.closure(main, ROOT) == closure(main)


@cache
def messages(file: Path) -> frozenset[str]:
    """Return the functions of a file whose sentences no result holds: its own, and those that it imports."""
    own = {node.name for node in nodes_of(file) if isinstance(node, ast.FunctionDef) and is_message(node)}
    split = [name.rpartition(".") for name in imported_by(file) if "." in name]
    imported = {
        name
        for module, _, name in split
        if (other := file_of(module)) is not None
        and any(is_message(node) and node.name == name for node in parsed(other).body)
    }
    return frozenset(own | imported)


def is_message(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    return (
        isinstance(node, ast.FunctionDef)
        and isinstance(node.returns, ast.Name)
        and node.returns.id == "Message"
    )


def kept(node: ast.AST, is_sentence: Callable[[ast.expr], bool]) -> Iterator[ast.expr]:
    """Yield the uses of a sentence that are neither raised, printed, nor a part of another sentence."""
    shown = {"print", "exit", "SystemExit", "reading"}  # the last one raises it
    if isinstance(node, ast.Raise) or is_message(node):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in shown:
        return
    if isinstance(node, ast.expr) and is_sentence(node):
        yield node
    if not (
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ):  # a number of an error, say
        for child in ast.iter_child_nodes(node):
            yield from kept(child, is_sentence)


def sentences_kept(tree: ast.Module, messages: frozenset[str]) -> list[int]:
    """Return the lines that keep an exception or a Message in a variable, or return it."""

    def is_call_of_message(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in messages

    lines = [node.lineno for node in kept(tree, is_call_of_message)]
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name]
    for handler in handlers:

        def is_caught(node: ast.AST, name: str | None = handler.name) -> bool:
            return isinstance(node, ast.Name) and node.id == name

        lines += [node.lineno for part in handler.body for node in kept(part, is_caught)]
    return lines


def test_no_sentence_of_an_error_gets_into_a_result() -> None:
    assert "did_you_mean" in messages(Path("decant/compression/selection.py"))
    found = {str(file): lines for file in RECORDED if (lines := sentences_kept(parsed(file), messages(file)))}
    assert set(found) == set(RAISED_LATER), found


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("try:\n    f()\nexcept E as error:\n    text = str(error)", [4]),
        ("try:\n    f()\nexcept E as error:\n    return {'reason': f'{error}'}", [4]),
        ("try:\n    f()\nexcept E as error:\n    raise D(f'no: {error}') from None", []),
        ("try:\n    f()\nexcept E as error:\n    print(error)\n    sys.exit(f'{error}')", []),
        ("try:\n    f()\nexcept E as error:\n    return error.errno", []),
        ("def f(error) -> Message:\n    return str(error)", []),
        ("facts = {'near': did_you_mean('a', 'b')}", [1]),
        ("raise E(did_you_mean('a', 'b'))", []),
    ],
)
def test_sentences_that_are_kept_are_found(code: str, lines: list[int]) -> None:
    assert sentences_kept(ast.parse(code), frozenset({"did_you_mean"})) == lines


# --- what the library leaves to the pipeline


def words_of(tree: ast.AST) -> Iterator[str]:
    """Yield the strings that are computed with: no docstrings, no sentences of errors."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (is_docstring or isinstance(node, ast.Raise)):
            yield from words_of(node)


TOLD_BY_ENVIRONMENT = {"decant/networks/devices.py": {"environ"}}
"""Only so can cuBLAS be told to repeat its sums, and does torchrun tell processes of one another."""


def test_the_library_reads_neither_params_nor_data_nor_the_command_line() -> None:
    parsers = {"argparse", "optparse", "getopt", "click"}
    for file in LIBRARY:
        words = list(words_of(parsed(file)))
        paths = [word for word in words if "params.yaml" in word or word.split("/")[0] in ("data", "models")]
        assert paths == [], file
        used = {node.attr for node in nodes_of(file) if isinstance(node, ast.Attribute)}
        assert not used & ({"argv", "environ"} - TOLD_BY_ENVIRONMENT.get(file.as_posix(), set())), file
        assert not {name.split(".")[0] for name in imported_by(file)} & parsers, file


FURTHER = {"distill": ["others"]}
"""What one operation alone may be given: an ensemble's further teachers."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_have_one_form(operation: str) -> None:
    function = getattr(import_module(f"decant.{operation}.operation"), operation)
    signature = inspect.signature(function, eval_str=True)
    parameters = signature.parameters
    may_be_given = ["teacher", *FURTHER.get(operation, []), "run"]
    assert list(parameters) == ["parent", "recipe", "splits", *may_be_given]
    assert [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY] == may_be_given
    assert [p.name for p in parameters.values() if p.default is None] == may_be_given
    assert signature.return_annotation is Result


def test_operations_are_those_that_params_can_name() -> None:
    with_block = {
        path.parent.name
        for path in (ROOT / "decant").glob("*/params.py")
        if "Block" in path.read_text(encoding="utf-8")
    }
    assert with_block == set(OPERATIONS)
    assert {path.parent.name for path in ROOT.glob("decant/*/operation.py")} == set(OPERATIONS)
    assert [name for name in OPERATIONS if not (ROOT / "tasks" / name / "__main__.py").is_file()] == []


# --- doors to devices

DEVICES, COMPILING = "decant/networks/devices.py", "decant/networks/compiling.py"
ASKS_COMPILERS = {
    "decant/checkpoints/activations.py",
    "decant/checkpoints/gradients.py",
    "decant/quantize/qat/learners.py",
}
"""Who asks whether it is exported or compiled at the moment, and computes the same by other operators."""

DOORS = {
    "torch.cuda": {DEVICES},
    "torch.accelerator": {DEVICES},
    "torch.autocast": {DEVICES},
    "torch.amp": {DEVICES},
    "torch.backends.cuda": {DEVICES},
    "torch.backends.cudnn": {DEVICES},
    "torch.sparse": {"decant/export/semi_structured.py"},
    "torch.distributed": {"decant/networks/processes.py", "tasks/pipeline/processes.py"},
    "torch.compile": {COMPILING},
    "torch.compiler": {COMPILING, *ASKS_COMPILERS},
    "torch._dynamo": {COMPILING},
    "torch._inductor": {COMPILING},
}
"""What of torch is asked of devices, of other processes and of compilers, and which files ask it."""

NAMES_GPUS = {DEVICES, "flows/described.py"}
"""Who compares with the kind of a device; flows count GPUs, and import no torch."""


def chains(file: Path) -> set[str]:
    """Return the names with dots that a file uses or imports, such as `torch.cuda.synchronize`."""
    found = {ast.unparse(node) for node in nodes_of(file) if isinstance(node, ast.Attribute)}
    return found | imported_by(file)


@pytest.mark.parametrize("door", DOORS)
def test_devices_processes_and_compilers_are_asked_in_one_file_each(door: str) -> None:
    found = {str(file) for file in FILES if any(f"{name}.".startswith(f"{door}.") for name in chains(file))}
    assert found <= DOORS[door]


def test_a_kind_of_device_is_named_in_one_file() -> None:
    naming = {str(file) for file in FILES if {"cuda", "nccl", "mps", "xpu"} & {*words_of(parsed(file))}}
    assert naming <= NAMES_GPUS
    ways = {"pin_memory", "non_blocking"}
    waiting = {
        str(file)
        for file in FILES
        for node in nodes_of(file)
        if (isinstance(node, ast.Attribute) and node.attr in {"cuda", "pin_memory", "is_cuda"})
        or (isinstance(node, ast.keyword) and node.arg in ways)
    }
    assert waiting <= {DEVICES}


def test_what_is_drawn_without_a_device_is_drawn_by_the_processor() -> None:
    """So that it is the same on every device: no generator of ours lies on another one."""
    for file, node in [(each, node) for each in FILES for node in nodes_of(each)]:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.Generator":
            assert not node.args, f"{file}:{node.lineno}"
            assert not node.keywords, f"{file}:{node.lineno}"


# --- dvc.yaml


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


def operation_of(command: str) -> str:
    """Return the operation that `python -m tasks.<operation> …` runs."""
    python, option, package, *_ = command.split()
    assert (python, option) == ("python", "-m"), command
    tasks, operation = package.split(".")
    assert tasks == "tasks"
    assert (ROOT / "tasks" / operation / "__main__.py").is_file()
    return operation


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_record_of_its_operation(stage: str) -> None:
    for command, deps, _ in members(stage):
        records = [dep for dep in deps if dep.startswith("data/code")]
        expected = [] if stage == "code" else [f"data/code/{operation_of(command)}"]
        assert records == expected, command


def test_dvc_yaml_lists_no_source_file() -> None:
    assert next(iter(STAGES)) == "code"
    assert STAGES["code"]["deps"] == list(record.OURS)
    assert STAGES["code"]["outs"] == ["data/code"]
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 230
    assert ".py" not in text
    for stage in STAGES:
        for _, deps, _ in members(stage):
            sources = {dep for dep in deps if dep.split("/")[0] in ("decant", "tasks", "flows")}
            assert sources == (set(record.OURS) if stage == "code" else set()), stage


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_reads_the_test_split_but_the_last_ones(stage: str) -> None:
    shown = ("data/test.parquet", "predictions", "stability", "explanations")
    reads = any(str(dep).startswith(shown) for _, deps, _ in members(stage) for dep in deps)
    assert reads == (stage in READS_TEST_SPLIT)


def test_no_code_knows_the_test_split_but_that_of_the_last_stages() -> None:
    knowing = {
        file.parts[1]
        for file in FILES
        if file not in (Path("tasks/pipeline/splits.py"), ANSWERS)
        and "TEST" in {getattr(node, "attr", getattr(node, "id", "")) for node in nodes_of(file)}
    }
    assert knowing == {"evaluate", "stability", "explain", "benchmark"}
    shown = {"tasks.pipeline.splits.TEST", "tasks.pipeline.predictions"}
    importing = {file.parts[1] for file in FILES if file != ANSWERS and shown & imported_by(file)}
    assert importing <= knowing
    for file in FILES:
        assert not any("test.parquet" in word for word in words_of(parsed(file))), file


@pytest.mark.parametrize("stage", STAGES)
def test_params_name_sections_that_there_are(stage: str) -> None:
    for _, _, params in members(stage):
        for name in params:
            assert name.split(".")[0] in PARAMS, f"{stage} depends on {name}"


# --- what a module says


def test_modules_say_what_they_hold() -> None:
    for file in FILES:
        tree = parsed(file)
        assert ast.get_docstring(tree), f"{file} has no docstring"
        assert file.stem not in ("utils", "util", "helpers", "common", "base", "misc"), file
        # Prefect's settings precede its import, and the checks of a stage's Python precede its imports.
        if file.name == "__init__.py" and file.parent.name not in ("flows", "tasks"):
            rest = ast.Module(tree.body[1:], [])
            resolves_names = file.parent in (
                Path("decant"),
                *(Path("decant", name) for name in OPERATIONS),
            )
            is_lazy = resolves_names and ast.dump(rest) == LAZY_INIT
            assert not rest.body or is_lazy, f"{file} holds a docstring"
