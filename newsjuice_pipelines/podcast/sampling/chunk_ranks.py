"""The bottom-k by hash: ranks of articles and chunks, and the lowest ranked ones of a stream in bounded memory.

Which rows are eligible is decided before (`chunk_filters`), which of the lowest are passed over afterwards (`chunks`).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from newsjuice_pipelines.podcast.sampling.chunk_filters import ChunkSampling, Values


@dataclass
class LowestArticles:
    """The lowest ranked articles seen so far, each with its lowest ranked chunks by chunk id."""

    capacity: int
    sampling: ChunkSampling
    let_go: bool = False
    _chunks: dict[str, dict[str, Values]] = field(default_factory=dict)
    _highest_first: list[tuple[int, str]] = field(default_factory=list)
    _highest_rank: float = math.inf  # of the articles held, once there is no room for more
    _last_id: Any = None
    _last_rank: int = 0

    def offer(self, values: Values) -> None:
        """Take an eligible row, unless its article ranks too high."""
        if values[0] != self._last_id:  # the chunks of an article mostly lie side by side
            self._last_id, self._last_rank = values[0], rank(self.sampling.seed, str(values[0]))
        place = self._last_rank
        if place > self._highest_rank:
            self.let_go = True
            return
        article = str(values[0])
        if article not in self._chunks and not self._admit(article, place):
            return
        chunks = self._chunks[article]
        chunk_id = f"{article}:{values[1]}"
        known = chunks.get(chunk_id)
        if known is None or _content(values) < _content(known):  # rows that share an id count once, whatever their order
            chunks[chunk_id] = values
        if len(chunks) > self.sampling.max_chunks_per_article:
            del chunks[max(chunks, key=self._order)]

    def in_order(self) -> Iterator[tuple[str, Values]]:
        """The id and values of all chunks held, lowest article rank first."""
        for article in sorted(self._chunks, key=self._order):
            chunks = self._chunks[article]
            yield from ((chunk_id, chunks[chunk_id]) for chunk_id in sorted(chunks, key=self._order))

    def _admit(self, article: str, place: int) -> bool:
        if len(self._chunks) == self.capacity:
            self.let_go = True
            if place >= -self._highest_first[0][0]:
                return False
            _, highest = heapq.heappop(self._highest_first)
            del self._chunks[highest]
        heapq.heappush(self._highest_first, (-place, article))
        self._chunks[article] = {}
        if len(self._chunks) == self.capacity:
            self._highest_rank = -self._highest_first[0][0]
        return True

    def _order(self, name: str) -> tuple[int, str]:
        return rank(self.sampling.seed, name), name


def rank(seed: int, name: str) -> int:
    """The place of an article or chunk among all others, from 0 to 2^64, for a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8])


def _content(values: Values) -> tuple[str, ...]:
    return tuple(map(str, values))
