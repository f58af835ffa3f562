"""Texts as sets of short character n-grams: their hashes, MinHash bands and exact overlaps, all vectorised.

Which overlap makes two texts near-duplicates is `clusters.py`'s business.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Five letters or digits, spaces left out: unrelated English headlines share some 1 % of theirs, and a word edited in a
# headline of ten changes about a fifth of them.
SHINGLE_LETTERS = 5
BANDS = 40
ROWS_PER_BAND = 4
SEED = 20
BLOCK_TEXTS = 2_048  # their hashes fit into a processor's cache
BLOCK_PAIRS = 50_000
NOT_LETTERS = re.compile(r"[\W_]+")


def letters_of(text: str) -> str:
    """Letters and digits only, in lower case, width and accents' spelling unified. A text without any keeps itself."""
    folded = unicodedata.normalize("NFKC", text).casefold() if not text.isascii() else text.lower()
    return NOT_LETTERS.sub("", folded) or text


def letters_digest(letters: str) -> bytes:
    """Eight bytes that stand for the text in every comparison of whole texts."""
    return hashlib.sha1(letters.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()[:8]


def band_keys(letters: Sequence[str]) -> NDArray[np.uint64]:
    """MinHash of every text, `BANDS` keys a text: two texts of overlap s share each of them with probability s^4.

    At least one of the 40 is shared with probability 0.9999 for s = 0.7 and 0.92 for s = 0.5 (Leskovec, Rajaraman, Ullman:
    Mining of Massive Datasets, 3.4.2).
    """
    import numpy as np

    factors = np.random.default_rng(SEED).integers(0, 2**31, BANDS * ROWS_PER_BAND, dtype=np.uint32) * 2 + 1
    keys = np.empty((len(letters), BANDS), dtype=np.uint64)
    for start, hashes, counts in _blocks(letters):
        firsts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        product = np.empty_like(hashes)
        for band in range(BANDS):
            key = np.zeros(len(counts), dtype=np.uint64)
            for factor in factors[band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]:
                np.multiply(hashes, factor, out=product)
                key = (key ^ np.minimum.reduceat(product, firsts)) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            keys[start : start + len(counts), band] = key
    return keys


def overlaps(letters: Sequence[str], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """The exact Jaccard overlap of the n-grams of each pair of texts, given by their places in `letters`."""
    import numpy as np

    found = [np.zeros(0)]
    for start in range(0, len(left), BLOCK_PAIRS):
        firsts, seconds = left[start : start + BLOCK_PAIRS], right[start : start + BLOCK_PAIRS]
        needed = np.unique(np.concatenate((firsts, seconds)))
        sets = _shingle_sets([letters[place] for place in needed])
        first_rows, second_rows = sets[np.searchsorted(needed, firsts)], sets[np.searchsorted(needed, seconds)]
        shared = np.asarray(first_rows.multiply(second_rows).sum(axis=1)).ravel()
        sizes = np.diff(first_rows.indptr) + np.diff(second_rows.indptr)
        found.append(shared / (sizes - shared))
    return np.concatenate(found)


def _blocks(letters: Sequence[str]) -> Iterator[tuple[int, NDArray[np.uint32], NDArray[np.int64]]]:
    """Place of the block's first text, the hashes of all its n-grams one text after the other, and how many each text has."""
    import numpy as np

    for start in range(0, len(letters), BLOCK_TEXTS):
        texts = [text.ljust(SHINGLE_LETTERS, "\0") for text in letters[start : start + BLOCK_TEXTS]]
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        grams = len(codes) - SHINGLE_LETTERS + 1
        hashes = np.zeros(grams, dtype=np.uint32)
        for offset in range(SHINGLE_LETTERS):
            hashes = hashes * np.uint32(0x01000193) + codes[offset : offset + grams]
        within = np.ones(len(codes), dtype=bool)
        for back in range(1, SHINGLE_LETTERS):  # an n-gram must not reach into the next text
            within[np.cumsum(lengths) - back] = False
        yield start, _mixed(hashes[within[:grams]]), lengths - SHINGLE_LETTERS + 1


def _mixed(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The hashes with every bit depending on all others (the finaliser of MurmurHash3)."""
    import numpy as np

    mixed = hashes
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return mixed ^ (mixed >> np.uint32(16))


def _shingle_sets(letters: Sequence[str]) -> Any:
    """A sparse row of ones a text, one column a possible n-gram hash of 31 bits."""
    import numpy as np
    from scipy.sparse import csr_array

    columns, sizes = [], [np.zeros(1, dtype=np.int64)]
    for _, hashes, counts in _blocks(letters):
        owners = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        unique = np.unique((owners << np.int64(31)) | (hashes >> np.uint32(1)).astype(np.int64))
        columns.append(unique & np.int64(2**31 - 1))
        sizes.append(np.bincount(unique >> np.int64(31), minlength=len(counts)))
    indices, starts = np.concatenate(columns), np.cumsum(np.concatenate(sizes))
    return csr_array((np.ones(len(indices), dtype=np.int32), indices, starts), shape=(len(letters), 2**31))
