"""Texts as tokens, by a tokenizer in a file of the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.progress import progress_bar
from decant.sealed import one_line
from tasks.prepare.room import Growing


@dataclass(frozen=True)
class Coded:
    """Texts as tokens.

    Attributes:
        tokens: Those of all texts, one after another [M], int64.
        lengths: How many each text has [N], int64.
        sizes: Bytes of each text in UTF-8 from the second token to the last [N], int64: from the first where
            the tokenizer puts one before a text.
        padding: What stands behind a text.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    padding: int

    @cached_property
    def places(self) -> int:
        """How many tokens the longest text has; at least 1."""
        return int(self.lengths.max(initial=1)) or 1

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return self.lengths.cumsum() - self.lengths

    def ids(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return the tokens of some texts [M, L], and behind each what it is padded with."""
        there = self.mask(rows).astype(bool)
        places = self._starts[rows][:, None] + np.arange(self.places)
        found = np.full(there.shape, self.padding, np.int64)
        found[there] = self.tokens[places[there]]
        return found

    def mask(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return 1 at each token of some texts and 0 behind them [M, L]."""
        return (np.arange(self.places) < self.lengths[rows][:, None]).astype(np.int64)


def read_tokenizer(path: Path) -> Any:
    """Return the tokenizer in a file.

    Raises:
        DecantError: There is none, or the library is not installed.
    """
    if not path.is_file():
        raise DecantError(f"No {path} here; put the file there, or name another")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DecantError("Texts need the library tokenizers: `pip install tokenizers`") from None
    todo = "save one by `tokenizer.save(...)`"
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DecantError(f"{path} is no file of the library tokenizers (it is no UTF-8); {todo}") from None
    except Exception as error:  # the library raises nothing narrower
        raise DecantError(
            f"{path} is no file of the library tokenizers ({one_line(error)}); {todo}"
        ) from None


class Coder:
    """Makes tokens of texts, some at a time.

    Args:
        tokenizer: Of the library; it is set up in place.
        length: Tokens of a text at most, those included that the tokenizer adds.

    Attributes:
        padding: What stands behind a text.
        vocabulary: How many tokens there are.

    Raises:
        DecantError: The tokenizer leaves no place for a text's own tokens.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.padding: int = (tokenizer.padding or {}).get("pad_id", 0)
        self.vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        tokenizer.no_padding()
        _truncate_(tokenizer, length)
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of each text, and its bytes as of `Coded.sizes`.

        Raises:
            DecantError: The tokenizer has no token for a word.
        """
        try:
            found = self._tokenizer.encode_batch([*texts])
        except Exception as error:  # the library raises nothing narrower
            raise DecantError(
                f"data.tokenizer fails on a text ({one_line(error)}); give it a token for words that it does "
                "not know, or train it on these texts"
            ) from None
        return [each.ids for each in found], [_size(*pair) for pair in zip(texts, found, strict=True)]


def encoded(coder: Coder, texts: Iterable[Sequence[str]]) -> Coded:
    """Return texts as tokens, one part of them after another."""
    ids, lengths, sizes = Growing(np.int64), Growing(np.int64), Growing(np.int64)
    with progress_bar(None, "tokens", "texts") as bar:
        for part in texts:
            found, known = coder(part)
            lengths.add(np.array([*map(len, found)], np.int64))
            sizes.add(np.array(known, np.int64))
            ids.add(np.array([token for each in found for token in each], np.int64))
            bar.update(len(part))
    return Coded(ids.array(), lengths.array(), sizes.array(), coder.padding)


def _truncate_(tokenizer: Any, length: int) -> None:
    """Have a tokenizer cut texts, in place."""
    if (added := tokenizer.num_special_tokens_to_add(False)) >= length:
        raise DecantError(
            f"data.length: {length} leaves no place for a text, as the tokenizer adds {added} tokens; take "
            "more"
        )
    tokenizer.enable_truncation(length)


def _size(text: str, found: Any) -> int:
    """Return the bytes from the second token of a text to the last one; see `Coded`."""
    if len(found.ids) < 2:
        return 0
    begin, end = found.offsets[0][1], max(place for _, place in found.offsets)
    return len(text[begin:end].encode())
