"""params.yaml: reading it, or one validated section of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter

from decant.errors import DecantError
from decant.schema import did_you_mean, mistakes

PARAMS = Path("params.yaml")


S = TypeVar("S")


def read_yaml(path: Path = PARAMS) -> dict[str, Any]:
    """Return the whole of params.yaml, unvalidated.

    Raises:
        DecantError: The file is missing or no YAML, a key is no string or stands twice, it is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise DecantError(f"No {path} here; run from the root of the repository") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DecantError(f"Cannot read {path}: {error}; it must be a text file in UTF-8") from None
    except yaml.YAMLError as error:
        message = str(error).replace('"<unicode string>"', str(path))
        raise DecantError(f"{path} is not valid YAML: {message}") from None
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
    if wrong := mistakes(content, schema, place):
        raise DecantError(f"{path} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return TypeAdapter(schema).validate_python(content)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys silently: a model would vanish unseen."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping whose keys are strings, each written once; what `<<` merges in may repeat them."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                kind = key.tag.removeprefix(_TAG)
                raise _unreadable(f"this key is of type {kind} to YAML; put it in quotes", key)
            if key.value in seen:
                raise _unreadable(f"the key {key.value!r} stands twice", key)
            seen.add(key.value)
        return node


_TAG = "tag:yaml.org,2002:"


def _unreadable(message: str, key: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, key.start_mark)
