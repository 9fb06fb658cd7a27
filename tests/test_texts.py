"""Texts as data: tokens, masks, lengths in batches, the next token as a target, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from decant.adoption.texts import check_texts
from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.inputs import TensorInput
from decant.networks.next_tokens import scoring
from decant.targets import NO_TOKEN, Tokens, next_tokens, scored
from decant.training.batches import batches, bucketed
from decant.training.goals import OfTokens, goal_of
from decant.training.logit_losses import Temperature
from decant.training.recipe import Training
from decant.training.soft import Answers
from tasks.evaluate.accuracy import accuracy, top
from tasks.evaluate.tokens import Scores
from tasks.pipeline import splits
from tasks.pipeline.metrics import MANY, OF_CLASSES, OF_TOKENS
from tasks.prepare import tables
from tasks.prepare.own_texts import draw
from tasks.prepare.params import TextParams
from tasks.prepare.tokens import Coder, encoded, read_tokenizer

pytest.importorskip("tokenizers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ("[PAD]", "[UNK]", "[START]", "buy", "now", "cheap", "hello", "dear", "friend", "meeting")
SHARES = {"kind": "shares", "validation": 0.25, "test": 0.25}


def words_file(path: str = "data/own/tokenizer.json", started: bool = False) -> Path:
    """Write a tokenizer that cuts texts at blanks."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if started:
        made.post_processor = processors.TemplateProcessing("[START] $A", special_tokens=[("[START]", 2)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return Path(path)


def rows_file(path: str = "data/own/texts.jsonl", count: int = 40) -> None:
    """Write texts of two classes, of one to six words."""
    draws = np.random.Generator(np.random.PCG64(0))
    lines = []
    for row in range(count):
        kind = ("ham", "spam")[row % 2]
        pool = WORDS[3:6] if kind == "spam" else WORDS[6:]
        text = " ".join(draws.choice(pool, size=int(draws.integers(2, 7))))
        lines.append(json.dumps({"text": text, "kind": kind, "sure": row / 10}))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n")


def params(**changes: Any) -> TextParams:
    described = {
        "source": "text",
        "file": "data/own/texts.jsonl",
        "column": "text",
        "tokenizer": "data/own/tokenizer.json",
        "length": 5,
        "split": SHARES,
    }
    return TextParams.model_validate({**described, **changes})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words_file()
    rows_file()
    return tmp_path


# --- tokens and masks


def test_a_text_becomes_its_tokens_and_a_mask(here: Path) -> None:
    coder = Coder(read_tokenizer(Path("data/own/tokenizer.json")), 3)
    found = encoded(coder, [["buy now"], ["hello dear friend other"]])
    assert found.ids(np.array([0, 1])).tolist() == [[3, 4, 0], [6, 7, 8]]
    assert found.ids(np.array([1])).tolist() == [[6, 7, 8]]
    assert found.mask(np.array([0, 1])).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found.lengths.tolist() == [2, 3]
    assert coder.vocabulary == 10


def test_a_word_that_a_tokenizer_has_no_token_for_is_told(here: Path) -> None:
    with pytest.raises(
        DecantError, match=r"data\.tokenizer fails on a text \(WordLevel .*; give it a token for"
    ):
        Coder(Tokenizer(models.WordLevel({"buy": 0})), 3)(["now"])


def test_bytes_are_those_of_the_tokens_that_are_predicted(here: Path) -> None:
    texts = ["buy now", "hello dear friend other", "buy", "dear fri€nd"]
    found = encoded(Coder(read_tokenizer(words_file()), 3), [texts])
    assert found.sizes.tolist() == [len(" now"), len(" dear friend"), 0, len(" fri€nd".encode())]
    started = encoded(Coder(read_tokenizer(words_file(started=True)), 3), [texts])
    assert started.ids(np.array([0])).tolist() == [[2, 3, 4]]
    assert started.sizes.tolist() == [
        len("buy now"),
        len("hello dear"),
        len("buy"),
        len("dear fri€nd".encode()),
    ]


def test_a_byte_of_a_character_counts_once_in_a_text(here: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = encoded(Coder(made, 100), [["abcdef"]])
    assert found.lengths.tolist() == [6] and found.sizes.tolist() == [5]


def test_splits_hold_tokens_masks_and_classes(here: Path) -> None:
    drawn, notes = draw(params(target={"kind": "classes", "column": "kind"}), 3)
    assert drawn.sizes is None
    train = drawn.splits["train"]
    assert isinstance(train.images, Rows) and list(train.images.tensors) == ["input_ids", "attention_mask"]
    texts = {
        tuple(WORDS.index(word) for word in row["text"].split()[:5]): row["kind"]
        for row in map(json.loads, Path("data/own/texts.jsonl").read_text().splitlines())
    }
    for ids, mask, label in zip(*train.images.tensors.values(), train.known_labels, strict=True):
        tokens = tuple(ids[: int(mask.sum())].tolist())
        assert mask.tolist() == [1] * len(tokens) + [0] * (5 - len(tokens))
        assert texts[tokens] == train.classes[int(label)]
    assert train.classes == ("ham", "spam")
    assert any("tokens in the middle" in line for line in notes)
    taken = train.shape
    assert isinstance(taken, dict)
    assert taken["input_ids"].shape == ("length",) and taken["input_ids"].below == 10


def test_what_is_written_is_read_back(here: Path) -> None:
    for fixed in (False, True):
        drawn, _ = draw(params(target={"kind": "numbers", "columns": ["sure"]}, fixed=fixed), 3)
        tables.write_rows(drawn.splits, Path("out"), {"data": {}}, "text", sizes=drawn.sizes)
        found = splits.read(Path("out/train.parquet"))
        assert isinstance(found.images, Rows) and isinstance(drawn.splits["train"].images, Rows)
        assert found.shape == drawn.splits["train"].shape
        assert (found.images.lengths is None) == fixed
        for name, tensor in drawn.splits["train"].images.tensors.items():
            assert torch.equal(found.images.tensors[name], tensor)
        assert torch.equal(found.known_labels, drawn.splits["train"].known_labels)


def test_next_tokens_are_read_back_with_their_bytes(here: Path) -> None:
    drawn, _ = draw(params(target={"kind": "tokens"}), 3)
    tables.write_rows(drawn.splits, Path("out"), {"data": {}}, "text", sizes=drawn.sizes)
    found = splits.read(Path("out/test.parquet"))
    assert found.target == Tokens(vocabulary=10)
    assert torch.equal(found.known_labels, drawn.splits["test"].known_labels)
    assert drawn.sizes is not None
    assert torch.equal(splits.bytes_of(Path("out/test.parquet")), drawn.sizes["test"])


def test_lines_of_a_file_are_texts(here: Path) -> None:
    Path("data/own/lines.txt").write_bytes(b"buy now\r\nhello dear\n" + b"meeting friend now\n" * 6)
    drawn, _ = draw(params(file="data/own/lines.txt", column=None), 0)
    assert sum(map(len, drawn.splits.values())) == 8
    assert drawn.splits["train"].labels is None


def test_texts_of_csv_and_parquet_are_the_same(here: Path) -> None:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    table = pyarrow.json.read_json("data/own/texts.jsonl")
    pyarrow.csv.write_csv(table, "data/own/texts.csv")
    pyarrow.parquet.write_table(table, "data/own/texts.parquet")
    each = [
        draw(params(file=f"data/own/texts.{end}"), 1)[0].splits["train"]
        for end in ("jsonl", "csv", "parquet")
    ]
    for other in each[1:]:
        assert isinstance(other.images, Rows) and isinstance(each[0].images, Rows)
        assert torch.equal(other.images.tensors["input_ids"], each[0].images.tensors["input_ids"])


# --- what is refused


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"model": {"type": "None"}}', r"tokenizer.json is no file of the library tokenizers \("),
        (b"\xff\xfe", r"is no file of the library tokenizers \(it is no UTF-8\)"),
        (b"{", "is no file of the library tokenizers"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(here: Path, content: bytes, sentence: str) -> None:
    Path("data/own/tokenizer.json").write_bytes(content)
    with pytest.raises(DecantError, match=sentence):
        draw(params(), 0)


def test_empty_and_broken_texts_are_named_or_left_out(here: Path) -> None:
    lines = [b"buy now cheap"] * 29
    lines[2], lines[4], lines[5] = b"", b"caf\xe9 now", b"  "
    Path("data/own/lines.txt").write_bytes(b"\n".join(lines) + b"\n")
    described = {"file": "data/own/lines.txt", "column": None}
    with pytest.raises(
        DecantError, match=r"lines.txt, line 3: is empty \(3 such of 29\); repair it, or say `bad: skip`"
    ):
        draw(params(**described), 0)
    drawn, notes = draw(params(**described, bad="skip"), 0)
    assert sum(map(len, drawn.splits.values())) == 26
    assert "left out: data/own/lines.txt, line 3: is empty (3 such of 29)" in notes
    Path("data/own/lines.txt").write_bytes(b"\n".join([*lines[:2], lines[4]]))
    with pytest.raises(DecantError, match=r"line 3: is no UTF-8: the byte 0xe9 at 3; repair"):
        draw(params(**described), 0)
    Path("data/own/lines.txt").write_bytes(b"\n\n")
    with pytest.raises(DecantError, match="is empty"):
        draw(params(**described, bad="skip"), 0)


def test_broken_utf8_in_a_table_is_named(here: Path) -> None:
    Path("data/own/texts.csv").write_bytes(b"text\nbuy now\ncaf\xe9 now\nhello dear\n")
    with pytest.raises(DecantError, match="row 2: text is no UTF-8: the byte 0xe9 at 3"):
        draw(params(file="data/own/texts.csv"), 0)


def test_texts_may_have_lines_of_their_own_and_be_long(here: Path) -> None:
    rows = ['"buy\nnow"', '"hello dear"', '"' + "cheap " * 250_000 + '"', *['"meeting, friend"'] * 9]
    Path("data/own/texts.csv").write_text("\n".join(["text", *rows]) + "\n")
    drawn, notes = draw(params(file="data/own/texts.csv"), 0)
    assert sum(map(len, drawn.splits.values())) == 12
    assert notes[0].startswith("12 texts of 2 tokens in the middle, 1 of 5 or more; 10 tokens")
    lines = [json.dumps({"text": text}) for text in ["cheap " * 250_000, *["buy now"] * 9]]
    Path("data/own/texts.jsonl").write_text("\n".join(lines))
    assert sum(map(len, draw(params(), 0)[0].splits.values())) == 10


def test_broken_utf8_in_parquet_and_json_is_told(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    whole = pa.array([b"buy now", b"caf\xe9 now", b"hello dear"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, whole.buffers())  # unchecked, as other writers do
    pyarrow.parquet.write_table(pa.table({"text": broken}), "data/own/texts.parquet")
    with pytest.raises(DecantError, match=r"row 2: text is no UTF-8: the byte 0xe9 at 3"):
        draw(params(file="data/own/texts.parquet"), 0)
    Path("data/own/texts.jsonl").write_bytes(b'{"text": "caf\xe9 now"}\n')
    with pytest.raises(DecantError, match=r"texts.jsonl"):
        draw(params(), 0)
    with pytest.raises(DecantError, match=r"sure holds double, expected texts"):
        rows_file()
        draw(params(column="sure"), 0)


def test_a_text_of_one_token_has_no_next_one(here: Path) -> None:
    Path("data/own/lines.txt").write_text("buy now\nhello\n" + "cheap friend\n" * 5)
    described = {"file": "data/own/lines.txt", "column": None}
    with pytest.raises(DecantError, match="line 2: has 1 tokens, expected 2 or more"):
        draw(params(**described, target={"kind": "tokens"}), 0)


def test_a_length_without_place_for_a_text_is_refused(here: Path) -> None:
    made = Tokenizer.from_file(str(words_file()))
    made.post_processor = processors.TemplateProcessing("[START] $A [START]", special_tokens=[("[START]", 2)])
    made.save("data/own/tokenizer.json")
    with pytest.raises(DecantError, match=r"data.length: 2 leaves no place for a text"):
        draw(params(length=2), 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"column": None}, "needs column"),
        ({"column": ["text", "other"]}, "is one column of texts; write two texts of a row into one column"),
        ({"file": "data/own/a.txt"}, "column needs a table"),
        (
            {"file": "data/own/a.txt", "column": None, "split": {**SHARES, "groups": "x"}},
            "split.groups needs a",
        ),
        (
            {"file": "data/own/a.txt", "column": None, "target": {"kind": "classes", "column": "x"}},
            "target.kind: classes needs a table",
        ),
        ({"target": {"kind": "classes", "column": "text"}}, "the network must not see it"),
        ({"tokenizer": "tokenizer.json"}, "must lie in data/own/ or networks/"),
        ({"file": "data/own/a.pdf"}, "must end in"),
        ({"split": {**SHARES, "stratified": True}}, "split.stratified is of classes"),
        ({"length": 1}, "greater than or equal to 2"),
    ],
)
def test_what_texts_cannot_be_is_told(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        params(**changes)


# --- lengths in batches


def texts(count: int = 64, places: int = 12, seed: int = 0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, places + 1, (count,), generator=draws)
    mask = (torch.arange(places) < lengths[:, None]).long()
    ids = torch.randint(1, 9, (count, places), generator=draws) * mask
    inputs = {
        "input_ids": TensorInput(shape=("length",), dtype="int64", below=9, example=(places,)),
        "attention_mask": TensorInput(shape=("length",), dtype="int64", below=2, example=(places,)),
    }
    rows = Rows({"input_ids": ids, "attention_mask": mask}, inputs)
    return Examples(rows, next_tokens(ids, mask), (), Tokens(vocabulary=9))


TRAINING = Training(epochs=1, batch_size=8)


def test_batches_are_as_long_as_their_longest_text_and_every_text_comes_once() -> None:
    train, seen, padded = texts(), [], 0
    for rows, labels in batches(train, TRAINING, 5, torch.device("cpu")):
        assert isinstance(rows, Rows) and labels is not None and rows.lengths is not None
        longest = int(rows.lengths.max())
        assert {tuple(each.shape) for each in (*rows.tensors.values(), labels)} == {(8, longest)}
        assert torch.equal(labels, next_tokens(*rows.tensors.values()))
        seen += [
            tuple(row[:length].tolist())
            for row, length in zip(rows.tensors["input_ids"], rows.lengths, strict=True)
        ]
        padded += int((rows.tensors["attention_mask"] == 0).sum())
    assert isinstance(train.images, Rows) and train.images.lengths is not None
    every = zip(train.images.tensors["input_ids"], train.images.lengths, strict=True)
    assert sorted(seen) == sorted(tuple(row[:length].tolist()) for row, length in every)
    assert padded < 0.2 * int((train.images.tensors["attention_mask"] == 0).sum())


def test_the_order_of_texts_is_a_function_of_the_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        return [
            rows.tensors["input_ids"].flatten().tolist()
            for rows, _ in batches(texts(), TRAINING, seed, torch.device("cpu"))
        ]  # type: ignore[union-attr]

    assert order(1) == order(1) != order(2)


def test_buckets_sort_a_window_and_shuffle_its_batches() -> None:
    draws = torch.Generator().manual_seed(0)
    order, lengths = torch.randperm(12, generator=draws), torch.arange(12)
    found = bucketed(order, lengths, 3, draws).reshape(-1, 3)
    assert sorted(map(tuple, found.tolist())) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]


# --- the next token


def test_the_next_token_by_hand() -> None:
    ids, mask = torch.tensor([[5, 6, 7, 0], [8, 9, 1, 2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert next_tokens(ids, mask).tolist() == [[6, 7, NO_TOKEN, NO_TOKEN], [9, 1, 2, NO_TOKEN]]


def test_the_loss_of_tokens_is_a_mean_over_the_places_that_have_one() -> None:
    examples = texts(6)
    labels, target = examples.known_labels, examples.target
    logits = torch.randn(6, 12 * 9, generator=torch.Generator().manual_seed(1))
    naive = [
        -math.log(
            math.exp(logits[n, 9 * place + label].item())
            / sum(math.exp(v) for v in logits[n, 9 * place : 9 * place + 9].tolist())
        )
        for n in range(6)
        for place, label in enumerate(labels[n].tolist())
        if label != NO_TOKEN
    ]
    assert target.loss(logits, labels).item() == pytest.approx(sum(naive) / len(naive), rel=1e-5)
    assert target.loss(logits, labels, reduction="sum").item() == pytest.approx(sum(naive), rel=1e-5)
    goal = goal_of(examples, examples, None)
    assert isinstance(goal, OfTokens)
    found = goal.measures(scored(logits, labels))
    assert found["validation_loss"] == pytest.approx(sum(naive) / len(naive), rel=1e-5)
    assert found["validation_token_accuracy"] == pytest.approx(target.watch(logits, labels), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_tokens_are_distilled_by_the_divergence_at_each_place_that_has_one(temperature: float) -> None:
    examples = texts(5)
    labels, count = examples.known_labels, 0
    one, other = (torch.randn(5, 12 * 9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    naive = 0.0
    for row in range(5):
        for place, label in enumerate(labels[row].tolist()):
            if label == NO_TOKEN:
                continue
            here = slice(9 * place, 9 * place + 9)
            q, p = ((each[row, here].double() / temperature).softmax(0) for each in (one, other))
            naive += sum((b * (b / a).log()).item() for a, b in zip(q, p, strict=True)) * temperature**2
            count += 1
    loss = Temperature(temperature=temperature, hard=0.25)
    hard = examples.target.loss(one, labels).item()
    found = loss.total(Answers(one, other, labels), 0.0, examples.target)
    assert found.item() == pytest.approx(0.25 * hard + 0.75 * naive / count, rel=1e-5)
    behind = other.clone().reshape(5, 12, 9)
    behind[labels == NO_TOKEN] += 100 * torch.randn(9)
    same = loss.total(Answers(one, behind.flatten(1), labels), 0.0, examples.target)
    assert torch.equal(same, found)


def test_perplexity_and_bits_per_byte_by_hand() -> None:
    ids, mask = torch.tensor([[1, 2, 3], [3, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    chances = {0: 0.5, 1: 0.25, 2: 0.125, 3: 0.125}
    logits = torch.tensor([math.log(chances[token]) for token in range(4)]).repeat(2, 3, 1)
    outputs = scoring(lambda *_: logits)(ids, mask)
    found = Scores(outputs, outputs, next_tokens(ids, mask), torch.tensor([7, 4])).measures()
    bits = 3 + 3 + 2  # of the tokens 2, 3 and 1
    assert found["perplexity"] == pytest.approx(2 ** (bits / 3), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(bits / 11, rel=1e-6)
    assert (found["token_accuracy"], found["agreement"]) == (0, 1)
    assert found["perplexity_low"] <= found["perplexity"] <= found["perplexity_high"]
    assert list(found) == list(OF_TOKENS.keys[: len(found)])


def test_texts_are_scored_a_few_at_a_time_and_come_out_the_same() -> None:
    examples = texts(21)
    assert isinstance(examples.images, Rows)
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(1))
    sizes = []

    def network(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return table[ids.mul_(1)]

    ids, mask = examples.images.tensors.values()
    whole = scored(table[ids].flatten(1), examples.known_labels)
    assert torch.equal(scoring(network)(ids.clone(), mask), whole)
    assert sizes == [8, 8, 5]


def test_agreement_counts_places_with_a_token_alone() -> None:
    examples = texts(20)
    labels = examples.known_labels
    one, other = (torch.randn(20, 12 * 9, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    found = Scores(scored(one, labels), scored(other, labels), labels, torch.ones(20)).measures()
    said = [each.reshape(20, 12, 9).argmax(2)[labels != NO_TOKEN] for each in (one, other)]
    assert found["agreement"] == pytest.approx((said[0] == said[1]).double().mean().item())


def test_scores_that_are_no_number_are_refused() -> None:
    examples = texts(4)
    outputs = scored(torch.full((4, 108), math.nan), examples.known_labels)
    with pytest.raises(DecantError, match="NaN or infinity"):
        Scores(outputs, outputs, examples.known_labels, torch.ones(4))


# --- a network that reads texts


class Reader(nn.Module):
    def __init__(self, words: int, masked: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 4)
        self.head = nn.Linear(4, 2)
        self.masked = masked

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[:, :, None].float() if self.masked else torch.ones(1, 1, 1)
        return self.head((self.table(input_ids) * mask).sum(1))


@pytest.mark.parametrize("words", [8, 9 + 129, 4])
def test_an_embedding_of_other_tokens_than_the_tokenizers_is_refused(words: int) -> None:
    rows = texts().images
    assert isinstance(rows, Rows)
    with pytest.raises(DecantError, match=f"embedding is of {words} tokens, and the tokenizer has 9 "):
        check_texts(Reader(words), rows, "reader.py")
    check_texts(Reader(9), rows, "reader.py")
    check_texts(Reader(64), rows, "reader.py")  # rounded up


def test_a_network_to_which_padding_is_text_is_refused() -> None:
    rows = texts().images
    assert isinstance(rows, Rows)
    with pytest.raises(
        DecantError, match=r"changes by .* places of padding behind it; leave out what attention_mask"
    ):
        check_texts(Reader(9, masked=False), rows, "reader.py")
    fixed = {
        name: each.model_copy(update={"shape": (12,), "example": ()})
        for name, each in (rows.inputs or {}).items()
    }
    check_texts(Reader(9, masked=False), Rows(rows.tensors, fixed), "reader.py")


# --- top 5


def test_top_five_is_a_rank() -> None:
    draws = torch.Generator().manual_seed(4)
    logits, labels = torch.randn(50, 12, generator=draws), torch.randint(0, 12, (50,), generator=draws)
    by_hand = [label in row.argsort(descending=True)[:5] for row, label in zip(logits, labels, strict=True)]
    assert top(5, logits, labels) == pytest.approx(sum(by_hand) / 50)
    assert top(1, logits, labels) == pytest.approx(accuracy(logits, labels))
    assert top(12, logits, labels) == 1


def test_top_five_is_measured_from_ten_classes_on() -> None:
    keys = dict.fromkeys(OF_CLASSES.keys, 0.5)
    assert [metric.key for metric in OF_CLASSES.of(keys)] == list(keys)
    few = {key: value for key, value in keys.items() if key != "top5_accuracy"}
    assert [metric.key for metric in OF_CLASSES.of(few)] == list(few)
    assert MANY == 10 and OF_CLASSES.higher["top5_accuracy"]
