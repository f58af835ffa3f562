"""Which rows a person should look at: best, median and worst by each measure. How they are shown is `quality_page.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RANKS = ("worst", "median", "best")
_PLACES = ("", "2nd ", "3rd ")


@dataclass(frozen=True)
class Example:
    """A row, and the rank by a measure that it was chosen for; no measure where it only fills up the number asked for."""

    row: int
    measure: str | None
    rank: str
    """Such as `worst`, `2nd worst` when the worst one is shown already, `next to the median`, or `one of 12 equal`."""


def choose_examples(goodness: Mapping[str, Sequence[float | None]], rows: int, count: int) -> list[Example]:
    """At most `count` different rows: by turns the worst, the median and the best one of each measure, then the next ones.

    Rows without a value are not ranked. Ties are in the order of the rows, so that the choice is always the same.

    Args:
        goodness: for each measure a value a row, the higher the better.
        rows: how many rows there are.
        count: how many to choose.
    """
    queues = {(rank, measure): _queue(values, rank) for rank in RANKS for measure, values in goodness.items()}
    chosen: dict[int, Example] = {}
    while queues and len(chosen) < min(count, rows):
        for (rank, measure), queue in list(queues.items()):
            place = next((place for place, row in enumerate(queue) if row not in chosen), None)
            if place is None:
                del queues[rank, measure]
            elif len(chosen) < count:
                chosen[queue[place]] = Example(queue[place], measure, _rank(goodness[measure], queue, rank, place))
    left = (Example(row, None, "not ranked") for row in range(rows) if row not in chosen)
    return [*chosen.values(), *(example for _, example in zip(range(count - len(chosen)), left, strict=False))]


def _rank(values: Sequence[float | None], queue: Sequence[int], rank: str, place: int) -> str:
    """The rank of the row at `place` in its queue, in words: rows with the value of the first one are the first as well."""
    at = [values[row] for row in queue]
    equal = at.count(at[0])
    if equal == len(at) > 1:
        return f"one of {equal} equal"
    if at[place] == at[0]:
        return f"{rank}, one of {equal} equal" if equal > 1 else rank
    if rank == "median":
        return "next to the median"
    return f"{_PLACES[place]}{rank}" if place < len(_PLACES) else f"{place + 1}th {rank}"


def _queue(values: Sequence[float | None], rank: str) -> list[int]:
    """The rows with a value, the nearest to the rank first."""
    known = [(value, row) for row, value in enumerate(values) if value is not None]
    if rank == "best":
        known.sort(key=lambda pair: (-pair[0], pair[1]))
    else:
        known.sort()
    if rank == "median":
        middle = (len(known) - 1) // 2
        known = [known[place] for place in sorted(range(len(known)), key=lambda place: (abs(place - middle), place))]
    return [row for _, row in known]
