"""Ranking evaluated classifiers, and testing whether one is better than another by more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.bootstrap import DRAWS, bootstrap
from newsjuice_pipelines.classification.judging.evaluate import PREDICTIONS
from newsjuice_pipelines.classification.judging.leaderboard_page import leaderboard_page, leaderboard_plot
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NEEDED_RESULTS = ("config", "metrics", "validation", "selected_on", "recipe", "calibration", "cascade")
PROMISES = ("target_precision", "certainty")
"""What the certified thresholds of every compared evaluation must promise alike, since shares filed depend on it."""
SIGNIFICANCE = 0.05


class LeaderboardError(ValueError):
    """The evaluations cannot be compared."""


def leaderboard(evaluations: Mapping[str, Path], out: Path, seed: int = 42) -> dict[str, Any]:
    """Rank models (name → evaluation directory) by validation accuracy; ties by speed, then name.

    The best is chosen on the validation part, so that the test part picks nothing. A model whose checkpoint the test part
    selected stands last and is never the best; `best` is None when there is no other. On the test rows every two models are
    compared: the difference in accuracy with a bootstrap interval that draws groups of near-duplicates, and the exact
    sign-flip test over these groups, Holm-corrected in `ranking` over the comparisons with the best, in `pairs` over all.
    Writes `results.json`, `report.md` and `leaderboard.png` to `out`; returns the results.

    Raises:
        LeaderboardError: nothing to rank, an evaluation that is not whole, evaluations of different test parts, or with
            different promises.
    """
    if not evaluations:
        raise LeaderboardError("No classifier was evaluated yet: materialise 'classifier_eval_report' for at least one model.")
    results = {model: _whole_results(model, directory) for model, directory in evaluations.items()}
    _check_promises(results)
    predictions = {model: _predictions(directory) for model, directory in evaluations.items()}
    correct = _correctness(predictions)
    rank = sorted(results, key=lambda model: _rank_key(model, results[model]))
    first = rank[0]
    groups = next(iter(predictions.values()))["group"].to_numpy()
    pairs = compare_pairs({model: correct[model] for model in rank}, groups, seed)
    against_first = [pair for pair in pairs if pair["first"] == first]
    corrected = holm([pair["p_value"] for pair in against_first])
    compared = {pair["second"]: {**pair, "p_corrected": value} for pair, value in zip(against_first, corrected, strict=True)}
    ranking = [_entry(place, model, results[model], compared.get(model)) for place, model in enumerate(rank, start=1)]
    best = first if ranking[0]["eligible"] else None
    board = {
        "best": best,
        "chosen_by": "validation accuracy",
        "not_told_apart": [model for model, pair in compared.items() if pair["p_corrected"] > SIGNIFICANCE],
        "test_rows": len(groups),
        "models": len(ranking),
        "bootstrap_draws": DRAWS,
        "ranking": ranking,
        "pairs": pairs,
    }
    write_json(out / "results.json", board)
    (out / "report.md").write_text(leaderboard_page(board), encoding="utf-8")
    leaderboard_plot(ranking, out / "leaderboard.png")
    return board


def compare_pairs(correct: Mapping[str, np.ndarray], groups: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Every model against every later one on the same rows: `difference` is the first's accuracy minus the second's.

    Args:
        correct: which rows each model got right.
        groups: the group of near-duplicates of every row; groups are drawn, and tested, as a whole.
        seed: of the bootstrap.
    """
    import numpy as np

    names = list(combinations(correct, 2))
    if not names:
        return []
    gains = np.array([correct[first].astype(float) - correct[second] for first, second in names])

    def differences(weights: np.ndarray) -> dict[str, float]:
        shares = gains @ weights / weights.sum()
        return {str(number): float(share) for number, share in enumerate(shares)}

    intervals = bootstrap(differences, groups, seed)
    pairs = [
        {
            "first": first,
            "second": second,
            "difference": float(gains[number].mean()),
            "interval": intervals[str(number)],
            **sign_flip_test(correct[first], correct[second], groups),
        }
        for number, (first, second) in enumerate(names)
    ]
    corrected = holm([pair["p_value"] for pair in pairs])
    return [{**pair, "p_corrected": value} for pair, value in zip(pairs, corrected, strict=True)]


def sign_flip_test(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Test two classifiers' correctness on the same rows by flipping whole groups: of equal ones, either may win any group.

    The p-value is two-sided and exact. Where every group has one row, it is that of McNemar's exact test.
    """
    import numpy as np
    from scipy.stats import binom

    _, group_of_row = np.unique(groups, return_inverse=True)
    leads = np.rint(np.bincount(group_of_row, weights=first.astype(float) - second)).astype(int)  # rows ahead, by group
    total, won = int(np.abs(leads).sum()), int(leads[leads > 0].sum())
    chances = np.ones(1)  # of every number of rows that the first could be ahead by in the groups it wins
    for lead, count in zip(*np.unique(np.abs(leads[leads != 0]), return_counts=True), strict=True):
        flipped = np.zeros(lead * count + 1)
        flipped[::lead] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, flipped)
    tail = float(chances[: min(won, total - won) + 1].sum())
    return {
        "only_first": int((first & ~second).sum()),
        "only_second": int((second & ~first).sum()),
        "p_value": min(1.0, 2 * tail),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values, in their own order."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = highest
    return corrected


def read_results(evaluation_dir: Path) -> dict[str, Any]:
    """The results of a written evaluation.

    Raises:
        LeaderboardError: the directory holds none.
    """
    path = evaluation_dir / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"{path} cannot be read ({error}): materialise 'classifier_eval_report' again.") from error
    return results


def _whole_results(model: str, evaluation_dir: Path) -> dict[str, Any]:
    """The results of an evaluation that holds all that is compared."""
    results = read_results(evaluation_dir)
    missing = [name for name in NEEDED_RESULTS if name not in results]
    if missing:
        raise LeaderboardError(
            f"The evaluation of {model} has no {', '.join(missing)}: materialise 'classifier_eval_report' of {model} again."
        )
    return results


def _check_promises(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse evaluations whose certified thresholds promise different things."""
    said = {model: ", ".join(f"{name} {found['config'][name]}" for name in PROMISES) for model, found in results.items()}
    if len(set(said.values())) > 1:
        listed = "; ".join(f"{model}: {promise}" for model, promise in said.items())
        raise LeaderboardError(
            f"The evaluations make different promises, so that what they file cannot be compared ({listed}). Materialise "
            "'classifier_eval_report' again with one target_precision and one certainty for all of them."
        )


def _rank_key(model: str, results: Mapping[str, Any]) -> tuple[bool, float, float, str]:
    return not _eligible(results), -results["validation"]["accuracy"], -results["texts_per_s"], model


def _eligible(results: Mapping[str, Any]) -> bool:
    """Whether the test part had no say in the checkpoint."""
    return bool(results["selected_on"] != "test")


def _entry(place: int, model: str, results: Mapping[str, Any], compared: Mapping[str, Any] | None) -> dict[str, Any]:
    """One line of the ranking; `compared` is the first model against this one, None for the first itself."""
    return {
        "rank": place,
        "model": model,
        "eligible": _eligible(results),
        "recipe": results["recipe"],
        "selected_on": results["selected_on"],
        "test_readings": results["test_readings"],
        "validation_accuracy": results["validation"]["accuracy"],
        "accuracy": results["metrics"]["accuracy"]["value"],
        "accuracy_interval": results["metrics"]["accuracy"]["interval"],
        "macro_f1": results["metrics"]["macro_f1"]["value"],
        "macro_f1_interval": results["metrics"]["macro_f1"]["interval"],
        "ece": results["calibration"]["ece"]["after"],
        "share_filed": results["cascade"]["filed"]["share"]["value"],
        "texts_per_s": results["texts_per_s"],
        "device": results["device"],
        "size_bytes": results["size_bytes"],
        "behind_best": compared["difference"] if compared else None,
        "behind_best_interval": compared["interval"] if compared else None,
        "only_best_right": compared["only_first"] if compared else None,
        "only_this_right": compared["only_second"] if compared else None,
        "p_value": compared["p_value"] if compared else None,
        "p_corrected": compared["p_corrected"] if compared else None,
    }


def _predictions(evaluation_dir: Path) -> pd.DataFrame:
    """The test predictions of an evaluation, sorted by row."""
    import pandas as pd

    path = evaluation_dir / PREDICTIONS
    if not path.is_file():
        raise LeaderboardError(f"{evaluation_dir} has no {PREDICTIONS}: materialise 'classifier_eval_report' again.")
    return pd.read_parquet(path).sort_values("row_id", ignore_index=True)


def _correctness(predictions: Mapping[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    """Which test rows every model got right; the rows and their labels must be the same for all."""
    import numpy as np

    (first, reference), *others = predictions.items()
    for model, rows in others:
        if not rows[["row_id", "label_id"]].equals(reference[["row_id", "label_id"]]):
            raise LeaderboardError(
                f"{model} and {first} were evaluated on different test rows ({len(rows)} and {len(reference)}): materialise "
                "'classifier_checkpoint' and 'classifier_eval_report' of both again, from the same split."
            )
    return {model: np.asarray(rows["predicted"] == rows["label_id"]) for model, rows in predictions.items()}
