"""Networks of other people: a function in a file of Python that builds one, and the sum of that code.

Nothing here runs a file by itself. An architecture that was read from disk builds nothing before `bound`
gives it the function, and it takes only one of that name out of code with the sum that it was saved with.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from decant.errors import DecantError, Message
from decant.lazy import torch
from decant.networks.layer_code import layer_sums
from decant.networks.memory import free_memory, within_memory
from decant.networks.time_limit import OutOfTime, limited
from decant.schema import Section

if TYPE_CHECKING:
    from torch import nn

LIMIT = 120
"""Seconds that a file may take to run, or a function to build a network."""

OURS = {"decant", "tasks", "flows"}

RUN = "decant_network_"
"""What the names of modules begin with whose files were run here."""


class Python(Section):
    """A network that a function of one's own builds.

    Attributes:
        file: Where the function is: a path below the folder of params.yaml, with slashes.
        function: Its name, `build` in params.yaml; a class of networks is one too.
        with_: What it is called with, by name; `with` in params.yaml.
        code: The SHA-256 sum of the file, of those of one's own that it imports, and of what Decant's layers
            do that are in it; empty where any will do.
    """

    kind: Literal["python"] = "python"
    file: Annotated[str, Field(max_length=400)]
    function: Annotated[str, Field(alias="build", max_length=200, pattern=r"^[A-Za-z_]\w*$")]
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    code: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    _builder: Any = PrivateAttr(None)

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = Path(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file or path.suffix != ".py":
            raise ValueError(f"must be a file of Python below this folder, as networks/mine.py, got {file!r}")
        return file

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Python) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash(self._told())

    def _told(self) -> str:
        return self.model_dump_json(by_alias=True)

    @property
    def origin(self) -> str:
        """What sentences of errors call it."""
        return self.file

    @property
    def place(self) -> str:
        """Where its function is."""
        line = _line(self._builder)
        return f"{self.file}, line {line}" if line else self.file

    @property
    def facts(self) -> dict[str, str]:
        """What a lineage says of its code."""
        return {"code": self.code}

    def pinned(self) -> Python:
        """Return the same: its code has a sum once it has a function."""
        return self

    def rerun(self) -> Python:
        """Return the same with its files run once more, where `function_of` ran them; itself where not."""
        module = sys.modules.get(getattr(self._builder, "__module__", ""))
        if module is None or not module.__name__.startswith(RUN) or module.__file__ is None:
            return self
        path = Path(module.__file__).resolve()
        root = path.parents[len(Path(self.file).parts) - 1]
        files = {each.resolve() for each in code_of(path, root)}
        names = {each.name for each in files}
        for name, loaded in list(sys.modules.items()):
            file = Path(getattr(loaded, "__file__", None) or ".")
            if file.name in names and file.resolve() in files:
                del sys.modules[name]
        return self.bound(function_of(self, root), self.code)

    @classmethod
    def of(cls, function: Any, **options: Any) -> Python:
        """Return the architecture that a function of Python builds, called with `options`.

        Args:
            function: Defined in a file, on its first level; a class of networks is one too.
            options: Numbers, words, lists and dicts, as JSON has them.
        """
        path = Path(inspect.getsourcefile(function) or "unknown.py")
        content = {"file": path.name, "build": function.__name__, "with": options, "code": sum_of_code(path)}
        return cls.model_validate(content).bound(function, content["code"])

    def bound(self, function: Any, code: str = "") -> Python:
        """Return the architecture with the function that builds it.

        Args:
            function: What to call; it has the name that stands here.
            code: The sum of its code, where it was found in its file by that name; taken from its file where
                empty.

        Raises:
            DecantError: It has another name, or its code another sum than the architecture was saved with.
        """
        if not code and function.__name__ != self.function:
            raise DecantError(
                f"The network is built by {self.function} of {self.file}, and {function.__name__} was given"
            )
        code = code or sum_of_code(Path(inspect.getsourcefile(function) or self.file))
        if self.code and code != self.code:
            raise DecantError(
                f"The network was saved with other code: {self.function} of {self.file} had the sum "
                f"{self.code[:12]}…, and has {code[:12]}…; take the file, and the Decant whose layers it "
                "imports, as they were, or make the model anew"
            )
        bound = self.model_copy(update={"code": code})
        bound._builder = function
        return bound

    def lend(self, other: Python) -> Python:
        """Return another architecture with this one's function, if it is of the same name and code.

        Raises:
            DecantError: As `bound`; or the two are called with other arguments.
        """
        if (self.with_, self.file, self.function) != (other.with_, other.file, other.function):
            raise DecantError(
                f"The network was saved as {other.function} of {other.file} with {other.with_}, and "
                f"{self.function} of {self.file} with {self.with_} was given"
            )
        return other.bound(self._builder, self.code)

    def build(self, shape: object = None, classes: object = None) -> nn.Module:
        """Return the network as its function builds it.

        Raises:
            DecantError: No function was given; it misses an argument, fails, takes too long, or returns no
                network; names file and line.
        """
        if self._builder is None:
            raise DecantError(
                f"The network is built by {self.function} of {self.file}, which is not run by itself: "
                f"give the function, as in decant.load(folder, build={self.function})"
            )
        try:
            inspect.signature(self._builder).bind(**self.with_)
        except TypeError as error:
            raise DecantError(f"{self.place}: {self.function}: {error}; name it under `with`") from None
        with blaming(self.file, f"{self.function} cannot build the network"):
            module = self._builder(**self.with_)
        if not isinstance(module, torch.nn.Module):
            raise DecantError(
                f"{self.place}: {self.function} returns {type(module).__name__}, expected a torch.nn.Module"
            )
        return module


def function_of(architecture: Python, root: Path = Path()) -> Any:
    """Run the file of an architecture and return its function. Only for files that are trusted.

    Args:
        architecture: Names the file and the function.
        root: The folder that `file` is below.

    Raises:
        DecantError: There is no such file or function, or the file fails; names the line.
    """
    path = root / architecture.file
    if not path.is_file():
        raise DecantError(
            f"No {architecture.file} here, which should build the network; put it there, or name another"
        )
    name = f"{RUN}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[name] = list(sys.path), module
    # At the end, so that a file such as keyword.py never stands in the place of one of Python's own.
    sys.path += [str(path.resolve().parent), str(root.resolve())]
    try:
        with blaming(architecture.file, "the file cannot be run"):
            spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    function = getattr(module, architecture.function, None)
    if not callable(function):
        raise DecantError(f"{architecture.file} has no function {architecture.function}")
    return function


def sum_of_code(path: Path, root: Path | None = None) -> str:
    """Return the SHA-256 sum of a file; with what it imports, one over all the sums.

    What it imports are files of one's own, and layers of Decant's, such as LogMel.

    Args:
        path: The file.
        root: Where imports are looked for beside the file's own folder.
    """
    files = code_of(path, root)
    sums = [(hashlib.sha256(each.read_bytes()).hexdigest(), each.name) for each in files]
    sums += [(found, name) for name, found in layers_of(files).items()]
    if len(sums) == 1:
        return sums[0][0]
    lines = "".join(f"{found}  {name}\n" for found, name in sums)
    return hashlib.sha256(lines.encode()).hexdigest()


def layers_of(files: Iterable[Path]) -> dict[str, str]:
    """Return the sums of Decant's layers that files of Python have, by the path of the layers' code."""
    return layer_sums(map(parsed, files))


def code_of(path: Path, root: Path | None = None) -> list[Path]:
    """Return a file and all files of one's own that it imports, in order; installed packages are not.

    Raises:
        DecantError: One of them cannot be read as Python.
    """
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop(0)
        if current not in found:
            found[current] = None
            waiting += _imports(current, [path.parent, *([root] if root else [])])
    return list(found)


def parsed(path: Path, name: str = "") -> ast.Module:
    """Return the syntax tree of a file, without running it.

    Raises:
        DecantError: It is missing, or no Python.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise DecantError(f"{name or path}{line} cannot be read as Python: {_first_line(error)}") from None


def _imports(path: Path, folders: list[Path]) -> Iterator[Path]:
    for node in ast.walk(parsed(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            for folder in folders if parts[0] not in OURS else ():
                base = folder.joinpath(*parts)
                yield from (p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file())


@contextmanager
def blaming(file: str, what: str, place: str = "") -> Iterator[None]:
    """Turn whatever the code of a file raises into a sentence that names its file and line.

    Args:
        file: The file.
        what: What could not be done.
        place: Where it was called, for what raises before a line of it is run.
    """
    try:
        with limited(LIMIT), within_memory():
            yield
    except DecantError:
        raise
    except (Exception, SystemExit, OutOfTime) as error:
        raise DecantError(f"{where(error, file) or place or file}: {what}: {_first_line(error)}") from None


def where(error: BaseException, file: str) -> Message:
    """Return the innermost line of a file in an error's traceback; nothing where it has none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).name == Path(file).name]
    return f"{file}, line {own[-1].lineno}" if own else ""


def _first_line(error: BaseException) -> Message:
    text = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return (
            f"it takes more memory than there is, of which {free_memory() / 1e9:.1f} GB are left now; take a "
            "smaller network, or a machine with more memory"
        )
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _line(function: Any) -> int:
    try:
        return inspect.getsourcelines(function)[1]
    except (OSError, TypeError):
        return 0


def missing(architecture: Python, root: Path = Path()) -> str:
    """Return what a file lacks of what an architecture asks of it, read and not run; empty where nothing.

    Raises:
        DecantError: As `parsed`.
    """
    path = root / architecture.file
    if not path.is_file():
        return f"there is no file {architecture.file}"
    tree, name = parsed(path, architecture.file), architecture.function
    found = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if name in imported | assigned or "*" in imported:
        return ""
    if name not in found:
        return f"{architecture.file} has no function {name}; it has {', '.join(found) or 'none'}"
    return _misfit(found[name], architecture)


def _misfit(node: ast.AST, architecture: Python) -> str:
    """Return which argument of a function is missing or unknown; empty where none is."""
    place = f"{architecture.file}, line {getattr(node, 'lineno', 0)}: {architecture.function}"
    function, skipped = node, 0
    if isinstance(node, ast.ClassDef):
        own = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if not own:
            return ""
        function, skipped = own[0], 1
    if not isinstance(function, ast.FunctionDef):
        return f"{place} is no plain function"
    given = function.args
    positional = [each.arg for each in (*given.posonlyargs, *given.args)][skipped:]
    needed = positional[: len(positional) - len(given.defaults)] if given.defaults else positional
    needed += [
        each.arg for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None
    ]
    known = {*positional, *(each.arg for each in given.kwonlyargs)}
    if lacking := [each for each in needed if each not in architecture.with_]:
        return f"{place} needs {', '.join(lacking)}; name it under `with`"
    if given.kwarg is None and (unknown := [each for each in architecture.with_ if each not in known]):
        return f"{place} takes no {', '.join(unknown)}; it takes {', '.join(sorted(known)) or 'nothing'}"
    return ""


def architectures_in(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every part of an unvalidated recipe that names a network of Python."""
    if isinstance(content, Mapping):
        if content.get("kind") == "python":
            yield content
        for value in content.values():
            yield from architectures_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from architectures_in(value)
