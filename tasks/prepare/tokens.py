"""Texts as tokens, by a tokenizer in a file of the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.sealed import one_line


class Coded(NamedTuple):
    """Texts as tokens.

    Attributes:
        ids: Tokens [N, L], int64, and behind a text what the tokenizer pads with.
        lengths: How many tokens each text has [N], int64.
        sizes: Bytes of each text in UTF-8 from the second token to the last [N], int64: from the first where
            the tokenizer puts one before a text.
        vocabulary: How many tokens there are.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    vocabulary: int


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


def encoded(tokenizer: Any, texts: Sequence[str], length: int) -> Coded:
    """Return texts as tokens, at most `length` of each, those included that the tokenizer adds.

    Raises:
        DecantError: It leaves no place for a text's own tokens.
    """
    padding = tokenizer.padding or {}
    tokenizer.no_padding()
    _truncate_(tokenizer, length)
    found = tokenizer.encode_batch([*texts])
    lengths = np.array([len(each.ids) for each in found], np.int64)
    ids = np.full((len(found), int(lengths.max(initial=1)) or 1), padding.get("pad_id", 0), np.int64)
    for row, each in enumerate(found):
        ids[row, : lengths[row]] = each.ids
    sizes = np.array([_size(text, each) for text, each in zip(texts, found, strict=True)], np.int64)
    vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    return Coded(ids, lengths, sizes, vocabulary)


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
