"""What a split leaks and which classes overlap: shared texts, near-duplicates across parts, class similarity."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import PARTS, count_shared, rank_of, read_classes, read_part
from newsjuice_pipelines.classification.judging.report import class_heatmap, overlap_page
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

NEAR_DUPLICATE_COSINE = 0.9
MAX_HELD_OUT_ROWS = 3_000
MAX_COMPARED_ROWS = 20_000
BLOCK_ROWS = 500
EXAMPLE_PAIRS = 20
CLASS_PAIRS = 15


def overlap_report(split_dir: Path, out: Path, seed: int = 42) -> dict[str, Any]:
    """Measure a split's leaks and its classes' similarity; writes `results.json`, `report.md`, `class_similarity.png`.

    Near-duplicates are pairs on two sides whose TF-IDF vectors of character 3- to 5-grams have a cosine of at least 0.9.
    Above `MAX_HELD_OUT_ROWS` held-out and `MAX_COMPARED_ROWS` compared rows a seeded sample is compared, and said so.
    """
    import pandas as pd

    frames = {part: read_part(split_dir, part) for part in PARTS}
    rows = pd.concat([frame.assign(part=part) for part, frame in frames.items()], ignore_index=True)
    classes = read_classes(split_dir)
    shared = count_shared(split_dir)
    results = {
        "rows": {part: len(frame) for part, frame in frames.items()},
        "shared_texts": shared["text"],
        "shared_groups": shared["group"],
        **_near_duplicates(rows, seed),
        **_class_similarity(rows, classes),
    }
    write_json(out / "results.json", results)
    (out / "report.md").write_text(overlap_page(results), encoding="utf-8")
    class_heatmap(results["class_cosine"], classes, out / "class_similarity.png")
    hidden = ("class_cosine", "near_duplicate_examples")
    return {name: value for name, value in results.items() if name not in hidden}


def _sample(rows: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """At most `limit` rows, drawn by seed and independent of their order."""
    if len(rows) <= limit:
        return rows
    ranks = [rank_of(row_id, seed) for row_id in rows["row_id"]]
    chosen = sorted(range(len(rows)), key=ranks.__getitem__)[:limit]
    return rows.iloc[sorted(chosen)]


def _near_duplicates(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Pairs of a held-out row and a row of another part that nearly read the same."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    all_held_out = rows[rows["part"] != "train"]
    held_out = _sample(all_held_out, MAX_HELD_OUT_ROWS, seed)
    compared = _sample(rows, MAX_COMPARED_ROWS, seed)
    vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
    index = vectoriser.fit_transform(compared["text"]).T.tocsr()
    queries = vectoriser.transform(held_out["text"])
    pairs: dict[frozenset[str], dict[str, Any]] = {}
    leaked: set[str] = set()
    compared_parts, compared_ids = compared["part"].to_numpy(), compared["row_id"].to_numpy()
    for start in range(0, queries.shape[0], BLOCK_ROWS):
        similar = (queries[start : start + BLOCK_ROWS] @ index).tocoo()
        close = similar.data >= NEAR_DUPLICATE_COSINE
        for row, column, cosine in zip(similar.row[close], similar.col[close], similar.data[close], strict=True):
            query = held_out.iloc[start + int(row)]
            if compared_parts[column] == query["part"]:
                continue
            leaked.add(query["row_id"])
            other = compared.iloc[int(column)]
            pair = frozenset((f"{query['part']}:{query['row_id']}", f"{compared_parts[column]}:{compared_ids[column]}"))
            pairs[pair] = {
                "cosine": round(float(min(cosine, 1.0)), 4),
                "parts": [query["part"], other["part"]],
                "labels": [query["label"], other["label"]],
                "texts": [query["text"], other["text"]],
            }
    ranked = sorted(pairs.values(), key=lambda pair: (-pair["cosine"], sorted(pair["texts"])))
    whole = len(held_out) == len(all_held_out) and len(compared) == len(rows)
    logger.info("near-duplicates: %d pairs among %d x %d rows", len(pairs), len(held_out), len(compared))
    return {
        "near_duplicate_cosine": NEAR_DUPLICATE_COSINE,
        "near_duplicate_pairs": len(pairs),
        "near_duplicate_rows": len(leaked),
        "near_duplicate_share": round(len(leaked) / len(held_out), 5) if len(held_out) else None,
        "checked_held_out_rows": len(held_out),
        "checked_against_rows": len(compared),
        "checked_every_row": whole,
        "near_duplicate_examples": ranked[:EXAMPLE_PAIRS],
    }


def _class_similarity(rows: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, Any]:
    """Cosines between the classes' mean TF-IDF word vectors on the training part, and the most similar pairs."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    train = rows[rows["part"] == "train"]
    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32).fit_transform(train["text"])
    labels = train["label_id"].to_numpy()
    centroids = np.vstack([np.asarray(vectors[labels == number].mean(axis=0)) for number in range(len(classes))])
    unit = normalize(centroids)
    cosine = np.clip(unit @ unit.T, 0.0, 1.0)
    size = len(classes)
    pairs = sorted((-round(float(cosine[row, column]), 4), row, column) for row in range(size) for column in range(row + 1, size))
    similar = [{"classes": [classes[row], classes[column]], "cosine": -negative} for negative, row, column in pairs[:CLASS_PAIRS]]
    return {"similar_classes": similar, "class_cosine": [[round(float(x), 4) for x in row] for row in cosine]}
