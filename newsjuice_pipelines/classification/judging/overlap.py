"""What flatters or limits any classifier on a split: leaks between the parts, format, doubtful labels, classes that are one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import PARTS, rank_of, read_classes, read_part, read_split_facts
from newsjuice_pipelines.classification.corpus.taxonomy import write_taxonomy_file
from newsjuice_pipelines.classification.judging import class_curve, label_problems, overlap_page, proposals
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

PROPOSED, PROPOSED_OVERLAPPING = "proposed", "proposed-overlapping"
"""Names of the taxonomies that are written, as `<name>.yaml`, and of their rows in the comparison."""
NEAR_DUPLICATE_COSINE = 0.9
MAX_HELD_OUT_ROWS = 3_000
MAX_COMPARED_ROWS = 20_000
BLOCK_ROWS = 500
EXAMPLE_PAIRS = 20
CLASS_PAIRS = 15
AUDITED_PARTS = ("train", "validation")
MERGES = ("renamed", "overlapping")
FORMAT_LEAF_ROWS = 20
FORMAT_FEATURES = (
    "characters",
    "words",
    "capital letters",
    "digits",
    "commas and stops",
    "quotes and dashes",
    "spaced punctuation",
    "a second sentence",
    "ends with a stop",
)


@dataclass(frozen=True)
class AuditConfig:
    """How labels and classes are audited."""

    folds: int = 5
    """Parts of the out-of-fold audit; every row is judged by a model that saw the other parts."""
    max_rows: int = 0
    """Most rows that are audited, drawn by seed; 0 audits every training and validation row."""
    merge: str = "renamed"
    """What the proposed taxonomy joins: "renamed" (sections that overlap, and whose years do not) or "overlapping" (all that
    overlap, which "renamed" writes to a second file where years are not known)."""
    parents: int = 8
    """How many parent classes the proposed taxonomy has at most."""
    target_precision: float = 0.9
    """Precision that the certified shares promise."""
    certainty: float = 0.95
    """How certain that promise is."""
    seed: int = 42
    """Seed of the folds, the halves and the samples."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; an audit needs 2 or more.")
        if self.max_rows < 0:
            raise ValueError(f"max_rows is {self.max_rows}; it must be 0 (every row) or more.")
        if self.merge not in MERGES:
            raise ValueError(f"merge is {self.merge!r}; it must be one of {', '.join(MERGES)}.")
        if self.parents < 2:
            raise ValueError(f"parents is {self.parents}; it must be 2 or more.")
        for name in ("target_precision", "certainty"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")


def overlap_report(split_dir: Path, out: Path, config: AuditConfig = AuditConfig()) -> dict[str, Any]:
    """Audit a split; writes `results.json`, `report.md`, `proposed.yaml` and plots to `out`.

    Where sections overlap whose years are not known, `proposed-overlapping.yaml` joins them, too.
    Near-duplicates are pairs on two sides whose TF-IDF vectors of character 3- to 5-grams have a cosine of at least 0.9.
    Above `MAX_HELD_OUT_ROWS` held-out and `MAX_COMPARED_ROWS` compared rows a seeded sample is compared, and said so.
    Labels, sections and format are audited on the training and validation parts: the test part stays unread.
    """
    import pandas as pd

    rows = pd.concat([read_part(split_dir, part).assign(part=part) for part in PARTS], ignore_index=True)
    classes = read_classes(split_dir)
    results = {
        "rows": {part: int((rows["part"] == part).sum()) for part in PARTS},
        "shared_texts": _shared(rows, "text"),
        "shared_groups": _shared(rows, "group"),
        "clusters": _clusters(read_split_facts(split_dir)),
        **_near_duplicates(rows, config.seed),
        **_class_similarity(rows, classes),
        **_audits(rows, out, config),
    }
    write_json(out / "results.json", results)
    (out / "report.md").write_text(overlap_page.overlap_page(results), encoding="utf-8")
    overlap_page.similarity_plot(results["class_cosine"], classes, out / "class_similarity.png")
    if results["curve"]["points"]:
        overlap_page.curve_plot(results["curve"]["points"], results["taxonomies"], config.target_precision, out / "curve.png")
    return _facts(results)


def _facts(results: dict[str, Any]) -> dict[str, Any]:
    """The results without their long tables."""
    hidden = ("class_cosine", "near_duplicate_examples", "clusters", "labels", "sections", "proposal", "curve", "taxonomies")
    facts = {name: value for name, value in results.items() if name not in hidden}
    short = ("class_count", "accuracy", "doubtful", "doubtful_share")
    for name in ("labels", "sections"):
        facts[name] = None if results[name] is None else {key: results[name][key] for key in short}
    proposal = results["proposal"]
    facts["proposal"] = None
    if proposal is not None:
        kinds = [pair["kind"] for pair in proposal["pairs"]]
        facts["proposal"] = {
            "class_count": proposal["class_count"],
            "merged": proposal["merged"],
            "overlapping": proposal["overlapping"],
            "pairs": {kind: kinds.count(kind) for kind in (proposals.RENAMED, proposals.SAME_TIME, proposals.YEARS_UNKNOWN)},
            "format_labels": proposal["format_labels"],
        }
    facts["taxonomies"] = {
        entry["taxonomy"]: {key: entry[key] for key in ("classes", "accuracy", "filed_share")} for entry in results["taxonomies"]
    }
    return facts


def _audits(rows: pd.DataFrame, out: Path, config: AuditConfig) -> dict[str, Any]:
    """Everything that reads labels: the audits of classes and of sections, the proposal, the curve and the format leak."""
    import numpy as np

    seen = rows[rows["part"].isin(AUDITED_PARTS)]
    if config.max_rows:
        seen = _sample(seen, config.max_rows, config.seed)
    seen = seen.assign(date=seen["date"].fillna("") if "date" in seen else "").sort_values("row_id").reset_index(drop=True)
    sections = label_problems.audit(seen, "category", config.folds, config.seed)
    found: dict[str, Any] = {"audited_rows": len(seen), "format": format_leak(seen, config.folds, config.seed)}
    if sections is None:
        logger.warning("audit: fewer than two sections have texts for %d folds; labels are not audited", config.folds)
        return found | {"labels": None, "sections": None, "proposal": None, "curve": {"points": []}, "taxonomies": []}
    same = seen.groupby("label")["category"].nunique().max() == 1
    labels = sections if same else label_problems.merged(sections, "label")
    proposal, mappings = _proposals(sections, out, config)
    label_of = dict(zip(sections.rows["category"], sections.rows["label"], strict=True))
    certificate = (config.seed, config.target_precision, config.certainty)
    small = int(np.bincount(sections.given).min())
    return found | {
        "labels": None if len(labels.names) < 2 else label_problems.label_problems(labels),
        "sections": None if same else label_problems.label_problems(sections),
        "smallest_section_rows": small,
        "proposal": proposal,
        "curve": class_curve.class_curve(sections, *certificate)
        | {"target": config.target_precision, "certainty": config.certainty},
        "taxonomies": class_curve.compare_taxonomies(sections, {"this split": label_of} | mappings, *certificate),
    }


def _proposals(
    sections: label_problems.Audited, out: Path, config: AuditConfig
) -> tuple[dict[str, Any], dict[str, Mapping[str, str]]]:
    """Write what is proposed from every audited row; for the comparison, the same merges built from the curve's first half."""
    proposal = proposals.propose(sections, config.merge, config.parents)
    written = {PROPOSED: (config.merge, proposal)}
    if any(pair["kind"] == proposals.YEARS_UNKNOWN for pair in proposal.pairs):
        overlapping = proposals.propose(sections, "overlapping", config.parents)
        if overlapping.groups != proposal.groups:
            written[PROPOSED_OVERLAPPING] = ("overlapping", overlapping)
    half = class_curve.fitted_half(sections, config.seed)
    mappings: dict[str, Mapping[str, str]] = {}
    for name, (merge, found) in written.items():
        write_taxonomy_file(proposals.proposed_taxonomy(found, sections.left_out, merge), out / f"{name}.yaml")
        if half is not None:
            mappings[name] = proposals.proposed_taxonomy(proposals.propose(half, merge, config.parents), {}, merge).mapping
    facts = proposals.proposal_facts(proposal) | {"merge": config.merge, "overlapping": None}
    if PROPOSED_OVERLAPPING in written:
        more = proposals.proposal_facts(overlapping)
        facts["overlapping"] = {name: more[name] for name in ("class_count", "parent_count", "merged")}
    return facts, mappings


def format_leak(rows: pd.DataFrame, folds: int, seed: int) -> dict[str, Any] | None:
    """How well a decision tree names the class from a text's format alone, against always naming the largest class.

    It sees lengths, capitals and punctuation, and no word. In a file put together from several sources the format gives the
    source away, and with it the class; what a classifier gains from it is worth nothing elsewhere. None with too few rows.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    per_class = rows.groupby("label")["group"].nunique()
    kept = rows[rows["label"].isin(per_class[per_class >= folds].index)]
    if kept["label"].nunique() < 2:
        return None
    features = np.array([format_features(text) for text in kept["text"]])
    labels = kept["label"].to_numpy(dtype=str)
    tree = DecisionTreeClassifier(min_samples_leaf=FORMAT_LEAF_ROWS, random_state=seed)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    named = cross_val_predict(tree, features, labels, groups=kept["group"].to_numpy(), cv=splitter)
    weights = tree.fit(features, labels).feature_importances_
    ranked = sorted(zip(FORMAT_FEATURES, weights.tolist(), strict=True), key=lambda pair: -pair[1])
    lower_case = {name: float((part["text"] == part["text"].str.lower()).mean()) for name, part in kept.groupby("label")}
    ordered = sorted(lower_case, key=lambda name: (lower_case[name], name))
    chance = float(kept["label"].value_counts(normalize=True).max())
    return {
        "rows": len(kept),
        "accuracy": round(float((named == labels).mean()), 4),
        "chance": round(chance, 4),
        "features": [{"feature": name, "weight": round(weight, 4)} for name, weight in ranked],
        "lower_case": [{"label": name, "share": round(lower_case[name], 4)} for name in (ordered[0], ordered[-1])],
    }


def format_features(text: str) -> tuple[float, ...]:
    """A text's format as numbers in the order of `FORMAT_FEATURES`; nothing in it tells one word from another."""
    letters = sum(character.isalpha() for character in text)
    tokens = text.split()
    inner = text.rstrip().rstrip(".!?…")
    return (
        len(text),
        len(tokens),
        sum(character.isupper() for character in text) / max(1, letters),
        sum(character.isdigit() for character in text),
        sum(text.count(mark) for mark in ",.;:!?"),
        sum(text.count(mark) for mark in "'\"-–—“”‘’"),
        sum(not any(character.isalnum() for character in token) for token in tokens),
        float(any(mark in inner for mark in (". ", "! ", "? "))),
        float(text.rstrip().endswith((".", "!", "?", "…"))),
    )


def _shared(rows: pd.DataFrame, column: str) -> int:
    """Values that occur in more than one part."""
    return int((rows.groupby(column)["part"].nunique() > 1).sum())


def _clusters(facts: dict[str, Any]) -> dict[str, Any] | None:
    """What the split says about its near-duplicate clusters; None for a split that says nothing."""
    found = facts.get("clusters")
    return found if isinstance(found, dict) else None


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
    labels: np.ndarray = train["label_id"].to_numpy()
    centroids = np.vstack([np.asarray(vectors[labels == number].mean(axis=0)) for number in range(len(classes))])
    unit = normalize(centroids)
    cosine = np.clip(unit @ unit.T, 0.0, 1.0)
    size = len(classes)
    pairs = sorted((-round(float(cosine[row, column]), 4), row, column) for row in range(size) for column in range(row + 1, size))
    similar = [{"classes": [classes[row], classes[column]], "cosine": -negative} for negative, row, column in pairs[:CLASS_PAIRS]]
    return {"similar_classes": similar, "class_cosine": [[round(float(x), 4) for x in row] for row in cosine]}
