"""params.yaml: reading it, or one validated section of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from decant.errors import DecantError
from decant.schema import did_you_mean, mistakes
from tasks.pipeline import yaml_reader

PARAMS = Path("params.yaml")

MOST_LINES, MOST_OF_A_LINE = 20, 400
"""How much of what is wrong with a file is said at once."""

S = TypeVar("S")


def read_yaml(path: Path = PARAMS, *, shared: bool = False) -> dict[str, Any]:
    """Return the whole of params.yaml, or of another file of sections, unvalidated.

    Args:
        path: The file.
        shared: Whether its values may be shared by anchors, aliases and merges.

    Raises:
        DecantError: The file is missing, is no YAML that can be read (see `yaml_reader.parse`), or holds
            something else than named sections.
    """
    try:
        with path.open("rb") as file:
            text = file.read(yaml_reader.MOST_CHARACTERS[shared] + 1).decode()
    except FileNotFoundError:
        raise DecantError(f"No {path} here; run from the root of the repository") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DecantError(f"Cannot read {path}: {error}; it must be a text file in UTF-8") from None
    return sections(text, str(path), shared=shared)


def sections(text: str, name: str, *, shared: bool = True) -> dict[str, Any]:
    """Return the named sections of a YAML file's text; see `read_yaml`."""
    content = yaml_reader.parse(text, name, shared=shared)
    if not isinstance(content, dict):
        raise DecantError(f"{name} must hold named sections, found {type(content).__name__}")
    return content


def read_section(name: str, schema: type[S], path: Path = PARAMS) -> S:
    """Return one section, validated; `name` may be dotted, such as `models.prune-80`.

    Raises:
        DecantError: There is no such section, or it does not fit the schema.
    """
    content: Any = read_yaml(path)
    for depth, key in enumerate(name.split(".")):
        if not isinstance(content, dict) or key not in content:
            place = ".".join(name.split(".")[:depth]) or str(path)
            known = [str(key) for key in content] if isinstance(content, dict) else []
            raise DecantError(f"{place} has no {key!r}{did_you_mean(key, known)}")
        content = content[key]
    return validate(content, schema, name, path)


def validate(content: Any, schema: Any, place: str = "", path: Path = PARAMS) -> Any:
    """Return `content` as `schema`, or raise a DecantError with one line for each mistake."""
    refuse(mistakes(content, schema, place), path)
    return TypeAdapter(schema).validate_python(content)


def refuse(wrong: Sequence[str], path: Path = PARAMS) -> None:
    """Raise a DecantError with a line for each mistake, the first so many; nothing where there is none."""
    if not wrong:
        return
    lines = [
        line if len(line) <= MOST_OF_A_LINE else f"{line[:MOST_OF_A_LINE]}…" for line in wrong[:MOST_LINES]
    ]
    if rest := len(wrong) - len(lines):
        lines.append(f"and {rest:,} more")
    raise DecantError(f"{path} is not valid:\n" + "\n".join(f"  {line}" for line in lines))
