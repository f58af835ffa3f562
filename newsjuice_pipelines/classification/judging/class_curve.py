"""What fewer classes buy: accuracy and certified coverage at every number of classes, and for given taxonomies.

Thresholds, the order of merging and the proposals that are compared come from one half of the out-of-fold rows, every figure
from the other; only the probabilities' one temperature saw both. Packaged proposals were chosen on such texts, which no half of
them can undo: they are marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import rank_of
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy, packaged_taxonomies
from newsjuice_pipelines.classification.judging.bootstrap import bootstrap
from newsjuice_pipelines.classification.judging.label_problems import Audited, audit_of_some
from newsjuice_pipelines.classification.judging.proposals import chance_overlap, merge_tree

if TYPE_CHECKING:
    import numpy as np

REFERENCE = "original-29"
CHOSEN_HERE = "proposed-"
"""Packaged taxonomies of this name were chosen by how much they file of texts such as these."""


@dataclass(frozen=True)
class Filing:
    """How one grouping of the names does on the rows it is shown on: which rows are filed, and which are right."""

    threshold: float | None
    filed: np.ndarray
    right: np.ndarray


def class_curve(audited: Audited, seed: int, target: float, certainty: float) -> dict[str, Any]:
    """Accuracy and the share filed at a certified precision, from every name on its own down to two classes.

    Names are merged in the order of their overlap in the first half's confident joint. Rows of one group stay in one half.
    """
    import numpy as np
    from scipy.cluster.hierarchy import cut_tree

    fitted = halves(audited, seed)
    size = len(audited.names)
    if not _usable(audited, fitted):
        return {"points": [], "fitted_rows": int(fitted.sum()), "shown_rows": int((~fitted).sum())}
    tree = merge_tree(chance_overlap(audit_of_some(audited, fitted).joint))
    owners = cut_tree(tree)  # column k: the cluster of every name after k merges
    points = []
    for merges in range(size - 1):
        filing = file_rows(audited, owners[:, merges], fitted, target, certainty)
        joined = _joined_by(audited.names, owners, merges)
        points.append({"classes": size - merges, **_shown(filing), "joined": joined})
    fitted_rows = int(np.count_nonzero(fitted))
    return {"points": points, "fitted_rows": fitted_rows, "shown_rows": len(fitted) - fitted_rows}


def compare_taxonomies(
    audited: Audited, more: Mapping[str, Mapping[str, str]], seed: int, target: float, certainty: float
) -> list[dict[str, Any]]:
    """The packaged taxonomies that know every audited section, and `more` (name → section → class), judged on the same rows.

    What `more` holds may know the first half (`fitted_half`) and no other row. `chosen_on_such_texts` marks packaged proposals.
    `filed_times_original` is the share filed over that of `original-29`, with a 95 % interval from paired bootstrap draws of
    groups; None where that taxonomy does not apply or files nothing.
    """
    fitted = halves(audited, seed)
    if not _usable(audited, fitted):
        return []
    packaged = _packaged_mappings(audited.names)
    mappings = {**packaged, **more}
    filings = {
        name: file_rows(audited, _numbers([mapping[section] for section in audited.names]), fitted, target, certainty)
        for name, mapping in mappings.items()
    }
    groups = audited.rows["group"].to_numpy()[~fitted]
    reference = filings.get(REFERENCE)
    compared = []
    for name, filing in filings.items():
        times = None if reference is None or name == REFERENCE else _times(filing, reference, groups, seed)
        compared.append(
            {
                "taxonomy": name,
                "classes": len(set(mappings[name].values())),
                **_shown(filing),
                "filed_times_original": times,
                "chosen_on_such_texts": name in packaged and name.startswith(CHOSEN_HERE),
            }
        )
    return sorted(compared, key=lambda entry: (-entry["classes"], entry["taxonomy"]))


def halves(audited: Audited, seed: int) -> np.ndarray:
    """True for the rows that thresholds are fitted on: the groups with the lower hash."""
    import numpy as np

    groups = audited.rows["group"].astype(str)
    side = {group: rank_of(group, seed)[0] < 128 for group in groups.unique()}
    return np.array([side[group] for group in groups], dtype=bool)


def fitted_half(audited: Audited, seed: int) -> Audited | None:
    """What the first half of the rows says alone; None where a half is empty or the first one lacks a name."""
    fitted = halves(audited, seed)
    return audit_of_some(audited, fitted) if _usable(audited, fitted) else None


def file_rows(audited: Audited, owners: np.ndarray, fitted: np.ndarray, target: float, certainty: float) -> Filing:
    """What is filed, and what of it rightly, when names with one number in `owners` are one class."""
    import numpy as np

    from newsjuice_pipelines.classification.judging.calibrate import certified_threshold

    membership = np.zeros((len(owners), int(owners.max()) + 1))
    membership[np.arange(len(owners)), owners] = 1
    chances = audited.probabilities @ membership
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == owners[audited.given]
    certified = certified_threshold(confidence[fitted], right[fitted], target, certainty)
    threshold = None if certified is None else certified.threshold
    shown = ~fitted
    filed = np.zeros(int(shown.sum()), dtype=bool) if threshold is None else confidence[shown] >= threshold
    return Filing(threshold, filed, right[shown])


def _usable(audited: Audited, fitted: np.ndarray) -> bool:
    """Whether both halves hold rows, and the first one every name."""
    import numpy as np

    return bool((~fitted).any()) and len(np.unique(audited.given[fitted])) == len(audited.names)


def _shown(filing: Filing) -> dict[str, Any]:
    """The figures of one grouping."""
    from newsjuice_pipelines.classification.judging.calibrate import precision_interval

    filed, right = int(filing.filed.sum()), int((filing.filed & filing.right).sum())
    return {
        "accuracy": round(float(filing.right.mean()), 4),
        "filed_share": round(filed / len(filing.filed), 4),
        "filed_precision": round(right / filed, 4) if filed else None,
        "filed_precision_interval": [round(bound, 4) for bound in precision_interval(right, filed)] if filed else None,
        "threshold": None if filing.threshold is None else round(filing.threshold, 4),
    }


def _joined_by(names: Sequence[str], owners: np.ndarray, merges: int) -> list[str]:
    """The names in the class that the last merge made."""
    if not merges:
        return []
    before, after = owners[:, merges - 1], owners[:, merges]
    for number in sorted(set(after.tolist())):
        members = after == number
        if len(set(before[members].tolist())) > 1:
            return [name for name, inside in zip(names, members.tolist(), strict=True) if inside]
    return []


def _packaged_mappings(sections: Sequence[str]) -> dict[str, dict[str, str]]:
    """Section → class of every packaged taxonomy that has a class for each of the sections."""
    found = {}
    for name in packaged_taxonomies():
        taxonomy = load_taxonomy(name)
        classes = {section: taxonomy.class_of(section) for section in sections}
        known = {section: label for section, label in classes.items() if label is not None}
        if len(known) == len(sections):
            found[name] = known
    return found


def _numbers(labels: Sequence[str]) -> np.ndarray:
    """Labels as numbers from 0."""
    import numpy as np

    ordered = sorted(set(labels))
    return np.array([ordered.index(label) for label in labels])


def _times(filing: Filing, reference: Filing, groups: np.ndarray, seed: int) -> dict[str, Any] | None:
    """How many times the reference's share is filed, with the interval of paired draws of groups."""
    if not reference.filed.any():
        return None

    def ratio(weights: np.ndarray) -> dict[str, float]:
        filed = float(weights[reference.filed].sum())
        return {"times": float(weights[filing.filed].sum()) / filed if filed else float("nan")}

    bounds = bootstrap(ratio, groups, seed)["times"]
    value = float(filing.filed.sum() / reference.filed.sum())
    return {"value": round(value, 3), "interval": None if bounds is None else [round(bound, 3) for bound in bounds]}
