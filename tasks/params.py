"""Sections of params.yaml: their base class, reading one, and errors that name the place in the file."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from tasks.errors import DecantError

PARAMS = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    """A part of params.yaml: immutable, without unknown keys, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        """Name the nearest known key; pydantic itself would say only that the key is not permitted."""
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [str(key) for key in value if key not in known and key not in cls.model_fields]
        if unknown:
            words = "; ".join(f"unknown key {key!r}{did_you_mean(key, known)}" for key in unknown)
            raise PydanticCustomError("unknown_key", "{words}", {"words": words})
        return value


class Block(Section):
    """What the block of every compressed model has: an operation and the model that it starts from."""

    op: str
    from_: str = Field(alias="from")


S = TypeVar("S")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` where a known word is near, and the list of known words where none is."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def read_yaml(path: Path = PARAMS) -> dict[str, Any]:
    """Return the whole of params.yaml, unvalidated.

    Raises:
        DecantError: The file is missing, is not YAML, has a key twice, or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise DecantError(f"No {path} here; run from the root of the repository") from None
    except yaml.YAMLError as error:
        raise DecantError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise DecantError(f"{path} must hold named sections, found {type(content).__name__}")
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
    try:
        return TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        lines = [_line(details, content, place) for details in error.errors()]
        raise DecantError(f"{path} is not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None


def derive_seed(seed: int, name: str) -> int:
    """Return the seed of one model, in [0, 2^63): other names give other seeds, in any order of running."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def _line(details: ErrorDetails, content: Any, place: str) -> str:
    """Return `models.a.bits: message` with only the parts of the location that stand in the file."""
    parts = [place] if place else []
    for part in details["loc"]:
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        elif part is not details["loc"][-1] or details["type"] != "missing":
            continue  # the tag of a union: a word of the schema, not of the file
        parts.append(str(part))
    return f"{'.'.join(parts) or 'top level'}: {_message(details)}"


def _message(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    if details["type"] == "union_tag_invalid":
        expected = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
        discriminator = str(context["discriminator"]).strip("'")
        return f"unknown {discriminator} {context['tag']!r}{did_you_mean(str(context['tag']), expected)}"
    if details["type"] == "union_tag_not_found":
        return f"needs the key {context['discriminator']}"
    if details["type"] == "missing":
        return "is missing"
    if details["type"] in ("unknown_key", "value_error"):
        return details["msg"].removeprefix("Value error, ")
    return f"{details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys without a word: a model would vanish unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)
