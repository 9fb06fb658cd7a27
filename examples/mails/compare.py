"""Write results.md and tradeoff.svg, after `dvc repro`: python compare.py, where params.yaml lies.

Reads the mails anew, as whoever uses onnx/*.onnx has to: the tokenizer makes words of each test mail, which
the file then answers alone, without padding. Beside them stands what a plain method makes of the same mails.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer

from decant.export.runtime import open_session

LENGTH = 1024
HEAD = """| model | F1 of spam | average precision | accuracy | 95 % interval | NLL | KB | ONNX file, KB |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure every file on the test mails; write a row for each model, and one for the plain method."""
    rows = [json.loads(line) for line in Path("data/own/mails.jsonl").read_text().splitlines()]
    mails = {name: [row for row in rows if row["split"] == name] for name in ("train", "test")}
    spam = {name: np.array([row["kind"] == "spam" for row in each]) for name, each in mails.items()}
    texts = {name: [row["text"] for row in each] for name, each in mails.items()}
    measured = {path.stem: json.loads(path.read_text()) for path in Path("metrics").glob("*.json")}
    lines = []
    for name, row in sorted(measured.items(), key=lambda pair: -pair[1]["size_bytes"]):
        content = Path("onnx", f"{name}.onnx").read_bytes()
        scores = answered(content, texts["test"])
        ends = f"{100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}"
        numbers = f"{100 * row['accuracy']:.2f} | {ends} | {row['nll']:.4f} | {row['size_bytes'] / 1000:.1f}"
        lines.append(f"| {name} | {judged(spam['test'], scores)} | {numbers} | {len(content) / 1000:.1f} |")
    plain = plainly(texts["train"], spam["train"], texts["test"])
    lines.append(f"| tf-idf and logistic regression | {judged(spam['test'], plain)} | | | | | |")
    page = "\n".join(
        [f"Written by compare.py; measured on {len(mails['test']):,} test mails.", "", HEAD, *lines, ""]
    )
    Path("results.md").write_text(page)
    shutil.copyfile("report/tradeoff.svg", "tradeoff.svg")
    print(page)


def answered(content: bytes, texts: list[str]) -> np.ndarray:
    """Return how much more likely than not a model finds each text to be spam [N], as a logit."""
    session = open_session(content, threads=1)
    tokenizer = Tokenizer.from_file("data/own/tokenizer.json")
    tokenizer.enable_truncation(LENGTH)
    found = []
    for each in tokenizer.encode_batch(texts):
        ids = np.array([each.ids or [0]], np.int64)
        mask = np.full_like(ids, bool(each.ids))
        ((ham, spam),) = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        found.append(spam - ham)
    return np.array(found)


def plainly(train: list[str], spam: np.ndarray, test: list[str]) -> np.ndarray:
    """Return the same of a logistic regression on the frequencies of 20,000 words."""
    words = TfidfVectorizer(max_features=20_000, sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=10, max_iter=300))
    return model.fit(train, spam).decision_function(test)


def judged(spam: np.ndarray, scores: np.ndarray) -> str:
    return f"{f1_score(spam, scores > 0):.4f} | {average_precision_score(spam, scores):.4f}"


if __name__ == "__main__":
    main()
