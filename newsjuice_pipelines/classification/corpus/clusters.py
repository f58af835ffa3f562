"""Clusters of texts that nearly read the same: MinHash finds candidates, their exact overlap decides, a second look the doubtful.

Which part of a split a cluster goes to is `split.py`'s business.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.embedding import minilm_vectors, word_vectors
from newsjuice_pipelines.classification.corpus.shingles import band_keys, letters_digest, letters_of, overlaps
from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("newsjuice.classification")

# From this overlap on two texts are one: at most one word in ten differs.
SAME_OVERLAP = 0.7
# Below this they are two; between the two limits the meaning decides.
DOUBTFUL_OVERLAP = 0.5
SAME_MEANING = {"minilm": 0.9, "tf-idf": 0.75}
# Embedding costs some 5 ms a text on two cores; the pairs with the greatest overlap come first, the rest is compared by words.
EMBEDDED_PAIRS = 1_000
# Texts that share a band key are compared with so many neighbours, so that a frequent phrase cannot make the work quadratic.
NEIGHBOURS = 8
# So many doubtful pairs are held, those with the greatest overlap; texts made from a few templates would give millions.
DOUBTFUL_PAIRS = 100_000
EXAMPLES = 20
EXAMPLE_TEXTS = 4


@dataclass(frozen=True)
class Clusters:
    """The cluster number of every text, in the order of the texts, and what was counted while finding them."""

    numbers: NDArray[np.int64]
    facts: Mapping[str, Any]


def find_clusters(texts: Sequence[str], *, embedded_pairs: int = EMBEDDED_PAIRS) -> Clusters:
    """Near-duplicate clusters: the connected parts of all pairs that nearly read the same.

    Two texts are a pair when they differ in case, spacing and punctuation only, when their character 5-grams overlap by 0.7
    (Jaccard), or when they overlap by 0.5 and a second look says that they mean the same. Which texts are together does not
    depend on their order. Time grows with the number of texts, not with its square.

    Args:
        texts: any number; a text may occur more than once.
        embedded_pairs: most doubtful pairs that MiniLM looks at; 0 leaves all of them to the comparison by words.
    """
    import numpy as np

    letters = [letters_of(text) for text in texts]
    digests = np.frombuffer(b"".join(map(letters_digest, letters)), dtype=">u8")
    # In the order of the digests, and each form once: neither order nor repetition of the texts plays a part below.
    _, firsts, places = np.unique(digests, return_index=True, return_inverse=True)
    forms = [letters[first] for first in firsts]
    links = _Links(len(forms))
    doubtful, all_held = _link_candidates(forms, links)
    second_look = _link_doubtful(doubtful, _one_writing(texts, places, doubtful), links, embedded_pairs)
    numbers = links.components()[places]
    sizes = np.bincount(numbers)
    facts = {
        "texts": len(texts),
        "clusters": len(sizes),
        "clusters_of_several": int((sizes > 1).sum()),
        "texts_in_clusters_of_several": int(sizes[sizes > 1].sum()),
        "largest_cluster": int(sizes.max()) if len(sizes) else 0,
        "same_but_for_case_and_punctuation": len(texts) - len(forms),
        "compared_pairs": links.compared,
        "pairs_by_overlap": links.linked,
        "doubtful_pairs": len(doubtful),
        "all_doubtful_pairs_held": all_held,
        "second_look": second_look,
        "limits": {"same_overlap": SAME_OVERLAP, "doubtful_overlap": DOUBTFUL_OVERLAP, **SAME_MEANING},
    }
    logger.info("near-duplicates: %d texts, %d clusters of several", facts["texts"], facts["clusters_of_several"])
    return Clusters(numbers, facts)


def label_disagreement(
    numbers: NDArray[np.int64], labels: Sequence[str], texts: Sequence[str], times: Sequence[int] | None = None
) -> dict[str, Any]:
    """The clusters whose rows carry different labels, with examples, and the accuracy that no classifier can exceed by skill.

    The best that can be done with texts that read the same is to give all of them the most frequent label of the cluster.

    Args:
        numbers: the cluster of every row.
        labels: its label.
        texts: its text.
        times: how many rows it stands for; None: itself.
    """
    import numpy as np
    import pandas as pd

    weights = np.ones(len(labels), dtype=np.int64) if times is None else np.asarray(times, dtype=np.int64)
    table = pd.DataFrame({"cluster": numbers, "label": np.asarray(labels, dtype=object), "times": weights})
    counts = table.groupby(["cluster", "label"], sort=False)["times"].sum()
    by_cluster = counts.groupby(level="cluster")
    kinds = by_cluster.size()
    disagreeing = kinds.index[kinds > 1]
    total = int(weights.sum())
    in_disagreement = int(by_cluster.sum().loc[disagreeing].sum())
    return {
        "disagreeing_clusters": len(disagreeing),
        "rows_in_disagreeing_clusters": in_disagreement,
        "best_possible_accuracy": round(int(by_cluster.max().sum()) / total, 6) if total else None,
        "disagreeing_examples": _examples(numbers, labels, texts, weights, disagreeing.to_numpy()),
    }


class _Links:
    """Which forms are one; a pair that is together already is never compared again."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self.compared = self.linked = 0
        self._component = np.arange(size, dtype=np.int64)

    def components(self) -> NDArray[np.int64]:
        """The number of every form's component."""
        return self._component

    def apart(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the pairs are not together yet."""
        apart: NDArray[np.bool_] = self._component[pairs[:, 0]] != self._component[pairs[:, 1]]
        return apart

    def link(self, pairs: NDArray[np.int64]) -> int:
        """Put the pairs together; how many there were."""
        import numpy as np
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if len(pairs):
            size = int(self._component.max()) + 1
            ends = self._component[pairs]
            edges = coo_array((np.ones(len(pairs), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
            _, merged = connected_components(edges, directed=False)
            self._component = merged.astype(np.int64)[self._component]
        return len(pairs)


def _link_candidates(forms: Sequence[str], links: _Links) -> tuple[list[tuple[int, int]], bool]:
    """Link all pairs with a sufficient overlap.

    Returns the doubtful pairs that are still apart, the most similar first, and whether these are all that were found.
    """
    import numpy as np

    keys = band_keys(forms)
    doubtful, overlap_of = np.zeros((0, 2), dtype=np.int64), np.zeros(0)
    all_held = True
    for band in range(keys.shape[1]):
        pairs = _neighbours(keys[:, band])
        pairs = pairs[links.apart(pairs)]
        overlap = overlaps(forms, pairs[:, 0], pairs[:, 1])
        links.compared += len(pairs)
        links.linked += links.link(pairs[overlap >= SAME_OVERLAP])
        unsure = (overlap >= DOUBTFUL_OVERLAP) & (overlap < SAME_OVERLAP)
        doubtful, firsts = np.unique(np.concatenate((doubtful, pairs[unsure])), axis=0, return_index=True)
        overlap_of = np.concatenate((overlap_of, overlap[unsure]))[firsts]
        best_first = np.argsort(-overlap_of, kind="stable")
        best_first = best_first[links.apart(doubtful[best_first])]
        all_held = all_held and len(best_first) <= DOUBTFUL_PAIRS
        doubtful, overlap_of = doubtful[best_first[:DOUBTFUL_PAIRS]], overlap_of[best_first[:DOUBTFUL_PAIRS]]
    return [(int(first), int(second)) for first, second in doubtful], all_held


def _neighbours(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs (smaller place first) of forms with an equal key, each form with at most `NEIGHBOURS` that follow it."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for distance in range(1, min(NEIGHBOURS, len(keys) - 1) + 1):
        equal = np.flatnonzero(ranked[distance:] == ranked[:-distance])
        if not len(equal):
            break
        pairs.append(np.column_stack((order[equal], order[equal + distance])))
    return np.concatenate(pairs)


def _one_writing(texts: Sequence[str], places: NDArray[np.int64], pairs: Sequence[tuple[int, int]]) -> dict[int, str]:
    """Of every form in `pairs` one way in which it is written: the first of the alphabet, whatever the order of the texts."""
    import numpy as np

    needed = np.unique(np.array(pairs, dtype=np.int64))
    writing: dict[int, str] = {}
    for position in np.flatnonzero(np.isin(places, needed)).tolist():
        place = int(places[position])
        writing[place] = min(writing.get(place, texts[position]), texts[position])
    return writing


def _link_doubtful(
    pairs: Sequence[tuple[int, int]], writing: Mapping[int, str], links: _Links, embedded_pairs: int
) -> dict[str, dict[str, int]]:
    """Link the doubtful pairs that mean the same; says by which method how many were looked at and linked."""
    import numpy as np

    weights = packaged_minilm()
    limit = embedded_pairs if weights is not None else 0
    seen: dict[str, dict[str, int]] = {}
    for method, chosen in (("minilm", pairs[:limit]), ("tf-idf", pairs[limit:])):
        if not chosen:
            continue
        needed = sorted({place for pair in chosen for place in pair})
        texts = [writing[place] for place in needed]
        vectors = minilm_vectors(texts, weights) if method == "minilm" and weights is not None else word_vectors(texts)
        rows = np.searchsorted(needed, np.array(chosen))
        same = np.array(chosen)[_cosines(vectors, rows[:, 0], rows[:, 1]) >= SAME_MEANING[method]]
        seen[method] = {"pairs": len(chosen), "linked": links.link(same)}
    return seen


def _cosines(vectors: Any, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cosine of each pair of rows of a dense or sparse matrix of unit vectors."""
    import numpy as np

    product = vectors[left] * vectors[right] if isinstance(vectors, np.ndarray) else vectors[left].multiply(vectors[right])
    return np.asarray(product.sum(axis=1), dtype=np.float64).ravel()


def _examples(
    numbers: NDArray[np.int64],
    labels: Sequence[str],
    texts: Sequence[str],
    times: NDArray[np.int64],
    clusters: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Up to `EXAMPLES` of the clusters: how many rows each label has, and a few texts. Their order follows from the texts."""
    import numpy as np

    members: dict[int, list[tuple[str, str, int]]] = defaultdict(list)
    for position in np.flatnonzero(np.isin(numbers, clusters)).tolist():
        members[int(numbers[position])].append((texts[position], labels[position], int(times[position])))
    ranked = sorted((sorted(rows) for rows in members.values()), key=lambda rows: (-sum(count for *_, count in rows), rows))
    return [
        {
            "labels": dict(sorted(_count_of_labels(rows).items())),
            "rows": [{"text": text, "label": label} for text, label, _ in rows[:EXAMPLE_TEXTS]],
        }
        for rows in ranked[:EXAMPLES]
    ]


def _count_of_labels(rows: Sequence[tuple[str, str, int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _, label, times in rows:
        counts[label] += times
    return counts
