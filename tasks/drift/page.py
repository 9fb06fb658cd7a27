"""The verdict as lines of text, and as Markdown."""

from __future__ import annotations

from tasks.drift.judge import Verdict

SHOWN = 12
"""Features that are shown; the file of --json has all."""


def lines(verdict: Verdict) -> list[str]:
    """Return what a person reads, at most 80 columns wide but for long names."""
    then, now = verdict.rows
    found = [f"{verdict.model}: {now:,} rows today, {then:,} in the reference"]
    found += [f"  {line}" for line in (*_of_shifts(verdict), *_of_cuts(verdict), *_of_agreement(verdict))]
    return [*found, "moved" if verdict.moved else "nothing has moved"]


def _of_shifts(verdict: Verdict) -> list[str]:
    shifted, every = verdict.shifted, len(verdict.shifts)
    rows = [
        f"{each.measure} {each.size:.3f}  psi {each.psi:.3f}  p {each.p:.1e}  {each.feature}"
        for each in shifted[:SHOWN]
    ]
    more = [f"and {len(shifted) - SHOWN} more"] if len(shifted) > SHOWN else []
    return [f"{len(shifted)} of {every} features of inputs and answers have moved", *rows, *more]


def _of_cuts(verdict: Verdict) -> list[str]:
    if not verdict.cut:
        return []
    rows = [
        f"{100 * verdict.cut[name][0]:.2f} % -> {100 * verdict.cut[name][1]:.2f} %  {name}"
        for name in verdict.cut_more
    ]
    return [f"{len(rows)} of {len(verdict.cut)} layers cut more of their inputs", *rows]


def _of_agreement(verdict: Verdict) -> list[str]:
    if verdict.difference is not None:
        then, now = verdict.difference
        return [f"difference from the teacher {then:.4g} -> {now:.4g}"]
    if verdict.agreement is None:
        return []
    then, now = verdict.agreement
    return [f"agreement with the teacher {100 * then:.2f} % -> {100 * now:.2f} %"]
