"""The reader of every YAML file here: DVC's own, behind bounds that are checked before anything is built.

DVC reads params.yaml, dvc.yaml and dvc.lock with ruamel.yaml, by the rules of YAML 1.2; with another library
a word such as `1e3` or `on` would have two meanings. A few hundred bytes of YAML can also stand for
gigabytes, by aliases of aliases, and for what Python cannot hold, by depth and digits. So the parser's
events, of which each is one word or one bracket, are looked at before values are made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from decant.errors import DecantError

MOST_CHARACTERS = 2**20, 16 * 2**20
"""Of a file in which nothing is shared, such as params.yaml, and of one that DVC writes."""

MOST_VALUES = 100_000, 1_000_000
"""Of such files; what an alias stands for counts wherever it is used."""

MOST_DEPTH = 64
MOST_OF_A_TEXT = 10_000
MOST_OF_A_KEY = 250
MOST_OF_A_NUMBER = 40

_TAG = "tag:yaml.org,2002:"
_PLAIN = ("str", "int", "float", "bool", "null")

UNSHARED = (
    "`&`, `*` and `<<` share values, and `dvc exp run -S` would then set another number, or none; write "
    "the values out where they are needed"
)


def parse(text: str, name: str, *, shared: bool = True) -> Any:
    """Return what a YAML file holds: mappings, lists, words, numbers, true, false and null.

    Args:
        text: The file's text.
        name: What messages call it.
        shared: Whether values may be shared by anchors, aliases and merges, as in files that DVC writes.

    Raises:
        DecantError: It is no YAML, or exceeds a bound; a key is no word or stands twice; a value is a date or
            has a tag; values are shared where they may not be. Names line and column.
    """
    if len(text) > (most := MOST_CHARACTERS[shared]):
        raise DecantError(f"{name} has more than the {most:,} characters that are read")
    try:
        walk = _Walk(name, shared)
        for event in _yaml().parse(text):
            walk.see(event)
        return _yaml().load(text)
    except DecantError:
        raise
    except MarkedYAMLError as error:
        _refuse(name, error.problem_mark or error.context_mark, error.problem or error.context or "")
    except ReaderError as error:
        before = text.encode()[: error.position].decode(errors="replace")
        mark = StringMark(name, 0, before.count("\n"), len(before) - before.rfind("\n") - 1, None, 0)
        _refuse(name, mark, f"{error.reason}; remove the character here")
    except Exception as error:  # whatever the library lets through, such as a character that YAML has not
        message = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise DecantError(f"{name} is not valid YAML: {message[:300]}") from None


@dataclass
class _Open:
    """A mapping or a list that has begun.

    Attributes:
        anchor: Its name for aliases.
        keys: The keys so far; None for a list.
        values: How many values it holds, itself and those of aliases included.
        height: How deep it is, aliases included.
        key_next: Whether a key comes next.
    """

    anchor: str | None
    keys: set[str] | None
    values: int = 1
    height: int = 1
    key_next: bool = True

    def add(self, values: int, height: int) -> None:
        """Count a value that has ended."""
        self.values += values
        self.height = max(self.height, height + 1)
        self.key_next = not self.key_next


class _Walk:
    """What is known of a document while its events pass."""

    def __init__(self, name: str, shared: bool) -> None:
        self._name, self._shared = name, shared
        self._open: list[_Open] = []
        self._known: dict[str, tuple[int, int]] = {}
        self._kinds: dict[tuple[str, tuple[bool, bool]], str] = {}
        self._values = 0
        pure = _yaml(pure=True)
        self._resolver, self._constructor = pure.resolver, pure.constructor

    def see(self, event: Event) -> None:
        """Take the next event.

        Raises:
            DecantError: The document may not hold it.
        """
        match event:
            case DocumentStartEvent():
                self._begin(event)
            case AliasEvent():
                self._alias(event)
            case ScalarEvent():
                self._scalar(event)
            case CollectionStartEvent():
                self._start(event)
            case CollectionEndEvent():
                self._end(event)

    def _begin(self, event: DocumentStartEvent) -> None:
        if event.version is not None or event.tags:
            self._refuse(event, "a line that begins with % changes how YAML is read; remove it")

    def _alias(self, event: AliasEvent) -> None:
        if not self._shared:
            self._refuse(event, UNSHARED)
        if self._at_key:
            self._refuse(event, "an alias is no key; write the word")
        if event.anchor not in self._known:
            self._refuse(event, f"no value before this one is named &{event.anchor}")
        self._add(event, *self._known[event.anchor])

    def _scalar(self, event: ScalarEvent) -> None:
        self._check_node(event)
        kind = self._kind(event)
        if self._at_key:
            self._check_key(event, kind)
        else:
            self._check_value(event, kind)
        if event.anchor is not None:
            self._known[event.anchor] = (1, 1)
        self._add(event, 1, 1)

    def _start(self, event: CollectionStartEvent) -> None:
        self._check_node(event)
        if self._at_key:
            self._refuse(event, "a key must be a word")
        self._count(event, 1, 1)
        self._open.append(_Open(event.anchor, set() if isinstance(event, MappingStartEvent) else None))

    def _end(self, event: CollectionEndEvent) -> None:
        ended = self._open.pop()
        if ended.anchor is not None:
            self._known[ended.anchor] = (ended.values, ended.height)
        if self._open:
            self._open[-1].add(ended.values, ended.height)

    def _add(self, event: NodeEvent, values: int, height: int) -> None:
        self._count(event, values, height)
        if self._open:
            self._open[-1].add(values, height)

    def _count(self, event: NodeEvent, values: int, height: int) -> None:
        self._values += values
        if self._values > (most := MOST_VALUES[self._shared]):
            self._refuse(event, f"the file stands for more than {most:,} values")
        if len(self._open) + height > MOST_DEPTH:
            self._refuse(event, f"values lie more than {MOST_DEPTH} deep in one another")

    @property
    def _at_key(self) -> bool:
        return bool(self._open) and self._open[-1].keys is not None and self._open[-1].key_next

    def _kind(self, event: ScalarEvent) -> str:
        """Return what YAML takes a word for, such as `int`; most words of a file stand in it often."""
        word = event.value, event.implicit
        if word not in self._kinds:
            tag = self._resolver.resolve(ScalarNode, *word)
            self._kinds[word] = str(tag).rpartition(":")[2]
        return self._kinds[word]

    def _check_node(self, event: NodeEvent) -> None:
        if (tag := getattr(event, "tag", None)) is not None:
            self._refuse(event, f"{tag} is a tag; write the value without one, in quotes if it is a word")
        if event.anchor is not None and not self._shared:
            self._refuse(event, UNSHARED)

    def _check_key(self, event: ScalarEvent, kind: str) -> None:
        keys = self._open[-1].keys
        assert keys is not None
        if kind == "merge" and not self._shared:
            self._refuse(event, UNSHARED)
        if kind not in ("str", "merge"):
            self._refuse(event, f"this key is of type {kind} to YAML; put it in quotes")
        if len(event.value) > MOST_OF_A_KEY:
            self._refuse(event, f"a key of {len(event.value):,} characters; {MOST_OF_A_KEY} is the most")
        if event.value in keys:
            self._refuse(event, f"the key {event.value!r} stands twice")
        keys.add(event.value)

    def _check_value(self, event: ScalarEvent, kind: str) -> None:
        size, most = len(event.value), MOST_OF_A_NUMBER if kind in ("int", "float") else MOST_OF_A_TEXT
        if size > most:
            self._refuse(event, f"a value of {size:,} characters; {most:,} is the most")
        if kind in ("int", "float") and not self._is_number(event.value, kind):
            self._refuse(event, f"{event.value!r} is no number; put it in quotes if it is a word")
        if kind not in _PLAIN:
            self._refuse(event, f"{event.value!r} is of type {kind} to YAML; put it in quotes")

    def _is_number(self, value: str, kind: str) -> bool:
        try:
            self._constructor.construct_object(ScalarNode(_TAG + kind, value))
        except ValueError:
            return False
        return True

    def _refuse(self, event: Event, problem: str) -> NoReturn:
        _refuse(self._name, event.start_mark, problem)


class _Resolver(VersionedResolver):
    """The library's, which asks for each word anew by which version of YAML it is to be read: here by one."""

    @cached_property
    def versioned_resolver(self) -> Any:
        """The patterns of words."""
        return super().versioned_resolver


def _yaml(pure: bool = False) -> YAML:
    """Return the reader that `dvc.utils.serialize.parse_yaml` makes; in Python alone where `pure`."""
    reader = YAML(typ="safe", pure=pure)
    reader.Resolver = _Resolver
    return reader


def _refuse(name: str, mark: Any, problem: str) -> NoReturn:
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    raise DecantError(f"{name}{place}: {problem[:1000]}")
