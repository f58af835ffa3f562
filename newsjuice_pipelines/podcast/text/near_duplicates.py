"""Finds texts that are nearly the same: MinHash and locality-sensitive hashing find candidates, the exact overlap decides.

What is done with a near-duplicate is its caller's business; equal texts need no sketch and are better found by their hash.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Three words: unrelated English articles share fewer than 2 % of theirs, and one edited word changes only three of them, so
# that 0.8 stands for about one word in thirty edited, or a tenth of the text added, cut or rewritten.
SHINGLE_WORDS = 3
# 128 minima are enough for bands that find a pair just at the limit with RECALL; more would only cost time.
PERMUTATIONS = 128
RECALL = 0.999


class NearDuplicates:
    """Texts held so far, and whether a further one is nearly the same as one of them.

    Two texts are near-duplicates when the Jaccard similarity of their sets of three-word shingles (letters and digits of
    the case-folded text) reaches `similarity`. The outcome depends on the texts, their order and the seed only. About 2 KB
    are held for a text of 250 words.

    Args:
        similarity: above 0 and up to 1.
        seed: of the hash permutations.
    """

    def __init__(self, similarity: float = 0.8, *, seed: int = 1) -> None:
        from datasketch import MinHash, MinHashLSH

        if not 0 < similarity <= 1:
            raise ValueError(f"similarity={similarity}: must be above 0 and at most 1; a lower one finds more duplicates.")
        self.similarity = similarity
        self._blank = MinHash(num_perm=PERMUTATIONS, seed=seed, hashfunc=_as_it_is)
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(similarity))
        self._shingles: dict[str, NDArray[np.uint32]] = {}

    def add(self, key: str, text: str) -> str | None:
        """The key of the most similar text held, when it is a near-duplicate of `text`; else None, and `text` is held as `key`.

        A text without a word is neither held nor a duplicate of anything.

        Raises:
            ValueError: `key` is held already.
        """
        shingles, sketch = self._sketched(key, text)
        similar = self._similar(shingles, sketch)
        if similar:
            return similar[0]
        self._hold(key, shingles, sketch)
        return None

    def near(self, key: str, text: str) -> list[str]:
        """The keys of all texts held that are near-duplicates of `text`, the most similar first; `text` is held as `key`.

        For clusters: a text that is near to a near-duplicate only is found as well. A text without a word is not held.

        Raises:
            ValueError: `key` is held already.
        """
        shingles, sketch = self._sketched(key, text)
        similar = self._similar(shingles, sketch)
        self._hold(key, shingles, sketch)
        return similar

    def _sketched(self, key: str, text: str) -> tuple[NDArray[np.uint32], Any]:
        if key in self._shingles:
            raise ValueError(f"the text {key!r} is held already: give each text a key of its own.")
        shingles = shingle_hashes(text)
        sketch = self._blank.copy()
        if len(shingles):
            sketch.update_batch(shingles.tolist())
        return shingles, sketch

    def _similar(self, shingles: NDArray[np.uint32], sketch: Any) -> list[str]:
        if not len(shingles):
            return []
        found = [(jaccard(shingles, self._shingles[other]), other) for other in self._index.query(sketch)]
        # The keys break ties: the index has no order.
        return [other for overlap, other in sorted(found, reverse=True) if overlap >= self.similarity]

    def _hold(self, key: str, shingles: NDArray[np.uint32], sketch: Any) -> None:
        if len(shingles):
            self._index.insert(key, sketch)
            self._shingles[key] = shingles


def words(text: str) -> list[str]:
    """The runs of letters and digits of the case-folded text: what texts are compared by."""
    return re.findall(r"\w+", text.casefold())


def shingles(text: str) -> list[str]:
    """The text's runs of three words, in order and with repeats; a text shorter than that is one shingle."""
    found = words(text)
    starts = range(max(len(found) - SHINGLE_WORDS + 1, min(len(found), 1)))
    return [" ".join(found[start : start + SHINGLE_WORDS]) for start in starts]


def shingle_hashes(text: str) -> NDArray[np.uint32]:
    """The distinct 32-bit hashes of the text's shingles, sorted."""
    import numpy as np

    hashes = [zlib.crc32(shingle.encode("utf-8", "replace")) for shingle in shingles(text)]
    return np.unique(np.array(hashes, dtype=np.uint32))


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """Shared shingles over all shingles of two sorted sets of hashes, of which one at least is not empty."""
    import numpy as np

    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def bands(similarity: float) -> tuple[int, int]:
    """Bands and rows of the index: the most rows, so the fewest candidates, that find a pair at the limit with `RECALL`.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman:
    Mining of Massive Datasets, 3.4.2).
    """
    for rows in range(PERMUTATIONS // 2, 0, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


def _as_it_is(hashed: Any) -> Any:
    """The sketch takes hashes as they are, since the exact overlap needs the same ones."""
    return hashed
