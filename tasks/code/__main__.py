"""Stage `code`: python -m tasks.code"""

from pathlib import Path

from decant.outputs import replacing
from tasks.pipeline.record import record
from tasks.pipeline.stage import run

CODE = Path("data/code")


def main() -> None:
    """Write one record for each operation."""
    with replacing(CODE) as folder:
        folder.mkdir()
        for path in sorted(Path("tasks").glob("*/__main__.py")):
            (folder / path.parent.name).write_text(record(path.parent.name), encoding="utf-8")


if __name__ == "__main__":
    run(main)
