"""Ranking evaluated classifiers and testing whether the best is better than the others by more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.evaluate import PREDICTIONS
from newsjuice_pipelines.classification.judging.report import leaderboard_page, leaderboard_plot
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class LeaderboardError(ValueError):
    """The evaluations cannot be compared."""


def leaderboard(evaluations: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Rank models (name → evaluation directory) by test accuracy; ties by macro F1, then speed.

    Each is compared with the best on the same test rows by McNemar's exact test, Holm-corrected over the comparisons. Writes
    `results.json`, `report.md` and `leaderboard.png` to `out`; returns the results.

    Raises:
        LeaderboardError: nothing to rank, an evaluation that is not whole, or evaluations of different test parts.
    """
    if not evaluations:
        raise LeaderboardError("No classifier was evaluated yet: materialise 'classifier_eval_report' for at least one model.")
    results = {model: read_results(directory) for model, directory in evaluations.items()}
    correct = _correctness({model: _predictions(directory) for model, directory in evaluations.items()})
    rank = sorted(results, key=lambda model: _rank_key(model, results[model]))
    best = rank[0]
    compared = {model: mcnemar(correct[best], correct[model]) for model in rank[1:]}
    corrected = dict(zip(compared, holm([test["p_value"] for test in compared.values()]), strict=True))
    ranking = [
        {
            "rank": place,
            "model": model,
            "accuracy": results[model]["metrics"]["accuracy"]["value"],
            "accuracy_interval": results[model]["metrics"]["accuracy"]["interval"],
            "macro_f1": results[model]["metrics"]["macro_f1"]["value"],
            "macro_f1_interval": results[model]["metrics"]["macro_f1"]["interval"],
            "ece": results[model]["calibration"]["ece"]["after"],
            "texts_per_s": results[model]["texts_per_s"],
            "device": results[model]["device"],
            "size_bytes": results[model]["size_bytes"],
            "only_best_right": compared[model]["only_first"] if model in compared else None,
            "only_this_right": compared[model]["only_second"] if model in compared else None,
            "p_value": compared[model]["p_value"] if model in compared else None,
            "p_corrected": corrected.get(model),
        }
        for place, model in enumerate(rank, start=1)
    ]
    board = {"best": best, "test_rows": len(correct[best]), "models": len(ranking), "ranking": ranking}
    write_json(out / "results.json", board)
    (out / "report.md").write_text(leaderboard_page(board), encoding="utf-8")
    leaderboard_plot(ranking, out / "leaderboard.png")
    return board


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test of two classifiers' correctness on the same rows (two-sided binomial over the discordant rows)."""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(min(only_first, only_second), discordant, 0.5).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


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


def _rank_key(model: str, results: Mapping[str, Any]) -> tuple[float, float, float, str]:
    metrics = results["metrics"]
    return -metrics["accuracy"]["value"], -metrics["macro_f1"]["value"], -results["texts_per_s"], model


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
