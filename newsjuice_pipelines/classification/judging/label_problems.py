"""Out-of-fold probabilities of a quick linear model, and what cleanlab reads from them: doubtful labels, overlapping classes.

What follows for the taxonomy is `proposals.py`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

LISTED_PROBLEMS = 50
LISTED_PAIRS = 25
MAX_FEATURES = 50_000
INVERSE_REGULARISATION = 0.3
WORD = r"(?u)\w+|[^\w\s]"  # a lone mark counts, so that no text is empty


@dataclass(frozen=True)
class Audited:
    """Rows with the probabilities that a model gave which never saw them, nor a row of their group.

    `given` (rows) numbers each row's name among `names`; `probabilities` is rows x names; `joint` is cleanlab's estimate of the
    share of rows with given name i and true name j (names x names, sums to 1); `left_out` counts the rows of names too small.
    """

    rows: pd.DataFrame
    names: tuple[str, ...]
    given: np.ndarray
    probabilities: np.ndarray
    joint: np.ndarray
    left_out: Mapping[str, int]

    @property
    def accuracy(self) -> float:
        """Share of rows whose given name is the model's first choice."""
        return float((self.probabilities.argmax(axis=1) == self.given).mean())


def audit(rows: pd.DataFrame, column: str, folds: int, seed: int) -> Audited | None:
    """Out-of-fold probabilities of the names in `column` for `rows` (`text`, `group`, `column`).

    A name with fewer groups than folds is left out and counted. None when fewer than two names remain: nothing to compare.
    """
    import numpy as np

    groups = rows.groupby(column)["group"].nunique()
    small = set(groups[groups < folds].index)
    kept = rows[~rows[column].isin(small)].reset_index(drop=True)
    left_out = {str(name): int(count) for name, count in rows[column].value_counts().sort_index().items() if name in small}
    names = tuple(sorted(kept[column].unique()))
    if len(names) < 2:
        return None
    given = np.searchsorted(np.array(names, dtype=object), kept[column].to_numpy(dtype=object))
    probabilities = out_of_fold(kept["text"].tolist(), given, kept["group"].to_numpy(), len(names), folds, seed)
    found = Audited(kept, names, given, probabilities, true_joint(given, probabilities), left_out)
    logger.info("audit of %d rows in %d classes: out-of-fold accuracy %.3f", len(kept), len(names), found.accuracy)
    return found


def merged(audited: Audited, column: str) -> Audited:
    """The same rows under the names in another column, where every name of `audited` belongs to one of the other's.

    Probabilities of names that belong together are added, so no second model is needed.
    """
    import numpy as np

    owner = dict(zip(audited.given.tolist(), audited.rows[column].tolist(), strict=True))
    names = tuple(sorted(set(owner.values())))
    membership = np.zeros((len(audited.names), len(names)))
    for number, name in owner.items():
        membership[number, names.index(name)] = 1
    given = membership.argmax(axis=1)[audited.given]
    probabilities = audited.probabilities @ membership
    left_out: dict[str, int] = dict(audited.left_out)
    return Audited(audited.rows, names, given, probabilities, true_joint(given, probabilities), left_out)


def audit_of_some(audited: Audited, kept: np.ndarray) -> Audited:
    """What some rows alone say (`kept` is True for them): their probabilities as they are, the joint estimated from them only.

    Every name must have one of them.
    """
    given, probabilities = audited.given[kept], audited.probabilities[kept]
    rows = audited.rows[kept].reset_index(drop=True)
    return replace(audited, rows=rows, given=given, probabilities=probabilities, joint=true_joint(given, probabilities))


def out_of_fold(
    texts: Sequence[str], labels: np.ndarray, groups: np.ndarray, class_count: int, folds: int, seed: int
) -> np.ndarray:
    """Probabilities (rows x classes) from models that saw no row of the row's group; a class absent from a fold gets 0.

    TF-IDF of words and word pairs with one-vs-rest linear SVMs, the fastest linear model on short texts; their margins become
    probabilities by one temperature, fitted on the margins of all folds.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.svm import LinearSVC

    from newsjuice_pipelines.classification.judging.calibrate import fit_temperature, softmax

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, max_features=MAX_FEATURES, sublinear_tf=True)
    features = vectoriser.fit_transform(texts)  # sees no label: one vocabulary for all folds gives nothing away
    margins = np.full((len(texts), class_count), -np.inf)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for fold, (train, held_out) in enumerate(splitter.split(features, labels, groups), start=1):
        model = LinearSVC(C=INVERSE_REGULARISATION, random_state=seed).fit(features[train], labels[train])
        scores = model.decision_function(features[held_out])
        if scores.ndim == 1:  # scikit-learn keeps one column for two classes
            scores = np.stack([-scores, scores], axis=1)
        margins[np.ix_(held_out, model.classes_)] = scores
        logger.info("audit: fold %d of %d", fold, folds)
    seen = np.isfinite(margins)
    filled = np.where(seen, margins, margins[seen].min() - 10.0)
    return softmax(filled, fit_temperature(filled, labels))


def true_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The estimated share of rows with given class i and true class j, from the confident joint (Northcutt et al. 2021)."""
    import numpy as np
    from cleanlab.count import compute_confident_joint, estimate_joint

    confident = compute_confident_joint(labels, probabilities)
    return np.asarray(estimate_joint(labels, probabilities, confident_joint=confident))


def label_problems(audited: Audited) -> dict[str, Any]:
    """Rows whose label the model doubts most, the share of doubtful rows of every class, and the classes that overlap.

    A doubt is cleanlab's: more rows of a class look like another one than the model's own uncertainty explains, both counted by
    class and by pair of classes. It says where to look, not that the label is wrong.
    """
    from cleanlab.filter import find_label_issues

    ranked = find_label_issues(
        audited.given, audited.probabilities, return_indices_ranked_by="normalized_margin", filter_by="both", n_jobs=1
    )
    doubtful = audited.given[ranked]
    per_class: list[dict[str, Any]] = [
        {"label": name, "rows": int((audited.given == number).sum()), "doubtful": int((doubtful == number).sum())}
        for number, name in enumerate(audited.names)
    ]
    for entry in per_class:
        entry["share"] = round(entry["doubtful"] / entry["rows"], 4) if entry["rows"] else None
    per_class.sort(key=lambda entry: (-(entry["share"] or 0.0), entry["label"]))
    return {
        "rows": len(audited.rows),
        "class_count": len(audited.names),
        "accuracy": round(audited.accuracy, 4),
        "left_out": dict(audited.left_out),
        "doubtful": len(ranked),
        "doubtful_share": round(len(ranked) / len(audited.rows), 4),
        "per_class": per_class,
        "listed": [_problem(audited, int(row)) for row in ranked[:LISTED_PROBLEMS]],
        "overlapping": overlapping_classes(audited),
    }


def _problem(audited: Audited, row: int) -> dict[str, Any]:
    """One doubtful row, for a person to read."""
    chances = audited.probabilities[row]
    likely = int(chances.argmax())
    return {
        "row_id": str(audited.rows["row_id"].iloc[row]),
        "text": str(audited.rows["text"].iloc[row]),
        "given": audited.names[int(audited.given[row])],
        "likely": audited.names[likely],
        "given_probability": round(float(chances[int(audited.given[row])]), 4),
        "likely_probability": round(float(chances[likely]), 4),
    }


def overlapping_classes(audited: Audited) -> list[dict[str, Any]]:
    """The pairs of classes whose rows are most often labelled as one another, by cleanlab's joint."""
    from cleanlab.dataset import find_overlapping_classes

    table = find_overlapping_classes(joint=audited.joint, num_examples=len(audited.rows), class_names=list(audited.names))
    pairs = zip(
        table["Class Name A"], table["Class Name B"], table["Num Overlapping Examples"], table["Joint Probability"], strict=True
    )
    found = [
        {"classes": [str(one), str(other)], "rows": int(count), "share": round(float(share), 5)}
        for one, other, count, share in pairs
        if count > 0
    ]
    return found[:LISTED_PAIRS]
