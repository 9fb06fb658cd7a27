"""Say whether what a model gets today looks like what it was tested on.

    python -m tasks.drift REFERENCE TODAY --model NAME [--alpha 0.01] [--least 0.1] [--json FILE]

Exit code: 0 nothing has moved, 1 something has, 2 it could not be judged; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from decant.errors import DecantError
from decant.outputs import telling_full_disks, write_json
from tasks.drift.judge import ALPHA, CUT, LEAST, ROWS, Settings, judge
from tasks.drift.page import lines
from tasks.pipeline.environment import raise_interrupts
from tasks.pipeline.stage import check_model

ABOUT = """Say whether what a model gets today looks like what it was tested on.

Both files are tables that `prepare` wrote, or .npz or .safetensors with the tensors that the network takes,
by name; pictures are called `image`, uint8 [N, C, H, W]. Nothing needs labels.

exit code: 0 nothing has moved, 1 something has, 2 it could not be judged"""


def main(words: list[str] | None = None) -> int:
    """Read both files and the model, print what has moved, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.drift", description=ABOUT, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("reference", type=Path, help="what the model was tested on")
    parser.add_argument("today", type=Path, help="what it gets now")
    parser.add_argument("--model", required=True, help="one of params.yaml's, or teacher")
    parser.add_argument("--alpha", type=_share, default=ALPHA, help=f"share of false alarms ({ALPHA})")
    parser.add_argument("--least", type=_share, default=LEAST, help=f"smallest shift that is told ({LEAST})")
    parser.add_argument("--cut", type=_share, default=CUT, help=f"more of a layer's inputs cut off ({CUT})")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"at most, of each file ({ROWS:,})")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    chosen = parser.parse_args(words)
    raise_interrupts()
    try:
        with telling_full_disks():
            check_model(chosen.model)
            settings = Settings(chosen.alpha, chosen.least, chosen.cut, chosen.rows)
            verdict = judge(chosen.reference, chosen.today, chosen.model, settings)
            if chosen.json:
                write_json(chosen.json, verdict.content())
            print("\n".join(lines(verdict)))
            return int(verdict.moved)
    except DecantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _share(word: str) -> float:
    """Return a number in (0, 1)."""
    value = float(word)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word} is no share between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
