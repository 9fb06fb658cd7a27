"""Every operation on every network of the tests' zoo: what works, and what is refused with which sentence.

    python -m benchmarks.generality                 # ten minutes on one core
    python -m benchmarks.generality skips decoder   # these networks anew, and all others as they are known

Both write `benchmarks/generality.json` after each network, and `benchmarks/generality.md` at the end.
`tests/conformance.py` holds each result to a computation of its own.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from benchmarks.kept import named
from decant.outputs import write_json, write_text
from tests.conformance import OPERATIONS, STEPS, Outcome, Verdict, check_pair, outcome, pairs
from tests.zoo import ZOO

PAGE = Path(__file__).with_suffix(".md")
KNOWN = Path(__file__).with_suffix(".json")
SIGNS = {Verdict.WORKS: "+", Verdict.REFUSED: "refused", Verdict.WRONG: "WRONG", Verdict.ERROR: "ERROR"}
HEAD = """# Any network, every operation

Written by `python -m benchmarks.generality`: every operation on the small networks of
[tests/zoo.py](../tests/zoo.py), which are written as other people write them, each with a trap. A **+**
stands for a result that is right, held to a computation of its own in
[tests/conformance.py](../tests/conformance.py): outputs in float64, levels and masks recomputed, files and
resumed trainings to the bit, ONNX Runtime beside PyTorch. What is refused is refused with a sentence below.
"""

Found = Mapping[str, Mapping[str, Outcome]]
"""By network, and by the operation or by two of them."""


def tried(network: str) -> dict[str, Outcome]:
    """Return what came of each operation on a network, and of two in a row."""
    single = {name: outcome(check, network) for name, check in OPERATIONS.items()}
    chosen = [each for each in pairs() if each[0] == network]
    return single | {f"{each[1]}, then {each[2]}": outcome(check_pair, *each) for each in chosen}


def stored() -> dict[str, dict[str, Outcome]]:
    """Return what is known, in the order of the zoo."""
    kept = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}
    return {
        network: {name: Outcome(Verdict(verdict), words) for name, (verdict, words) in kept[network].items()}
        for network in ZOO
        if network in kept
    }


def keep(found: Found) -> None:
    """Write what is known."""
    content = {
        network: {name: [each.verdict, each.words] for name, each in cells.items()}
        for network, cells in found.items()
    }
    write_json(KNOWN, content)


def counted(found: Found) -> str:
    """Return how many outcomes there are of each verdict."""
    numbers = Counter(each.verdict for cells in found.values() for each in cells.values())
    share = numbers[Verdict.WORKS] / max(1, numbers.total())
    return ", ".join(
        [
            f"{numbers.total()} in all",
            f"{numbers[Verdict.WORKS]} work ({share:.1%})",
            f"{numbers[Verdict.REFUSED]} are refused",
            f"{numbers[Verdict.WRONG]} are wrong",
            f"{numbers[Verdict.ERROR]} end in another error",
        ]
    )


def table(found: Found, columns: Iterable[str]) -> list[str]:
    """Return a sign for each operation on each network."""
    columns = list(columns)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{':---:|' * len(columns)}"]
    return lines + [
        f"| {network} | {' | '.join(SIGNS[cells[name].verdict] for name in columns)} |"
        for network, cells in found.items()
    ]


def sentences(found: Found) -> list[str]:
    """Return what was said, and of which cells, the cells of one sentence together."""
    places: dict[str, list[str]] = {}
    for network, cells in found.items():
        said: dict[str, list[str]] = {}
        for name, each in cells.items():
            if each.verdict is not Verdict.WORKS:
                said.setdefault(last_line(each.words), []).append(name)
        for words, names in said.items():
            places.setdefault(words, []).append(f"{network}: {' / '.join(names)}")
    return [f"- {words}<br>*{'; '.join(where)}*" for words, where in places.items()]


def last_line(words: str) -> str:
    """Return what was said, or the last line of a traceback."""
    return words.strip().splitlines()[-1]


def page(found: Found) -> str:
    """Return the table, what was refused, and what came of two operations in a row."""
    single = {network: {name: cells[name] for name in OPERATIONS} for network, cells in found.items()}
    chains = {
        network: {name: each for name, each in cells.items() if name not in OPERATIONS}
        for network, cells in found.items()
    }
    lines = [HEAD, f"Of the cells, {counted(single)}."]
    lines += ["", *table(single, OPERATIONS), "", "## The refusals", "", *sentences(single)]
    lines += ["", "## Two operations in a row", ""]
    lines += [
        f"Each network with each of {', '.join(STEPS)} in the first and in the second place, and each two of",
        "these: what the first one did holds after the second, the file is the same to the bit, and ONNX",
        f"Runtime agrees. Of the pairs, {counted(chains)}.",
        "",
        *sentences(chains),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try the named networks, or all."""
    networks = named(ZOO, __doc__)
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    for network in networks:
        print(network, flush=True)
        cells = tried(network)
        keep(stored() | {network: cells})
    found = stored()
    if found.keys() == ZOO.keys():
        write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
