"""The classifier's defect ledger: its intervals against known ones, and every run of it at a size that takes seconds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from newsjuice_pipelines.benchmarks import classifier_defect_runs, classifier_defects
from newsjuice_pipelines.benchmarks.classifier_defect_runs import LedgerSettings, run_variant
from newsjuice_pipelines.benchmarks.classifier_intervals import (
    clustered_mean,
    difference,
    flattery_deviation,
    picked_on_half,
    ratio,
)
from newsjuice_pipelines.benchmarks.classifier_runs import prepare_split, write_roberta

SMALL = LedgerSettings(
    other_taxonomy="merged-27",
    encoder_per_class=6,
    encoder_epochs=2,
    planted_share=0.2,
    timed_steps=2,
    timed_padded_steps=1,
    padded_tokens=96,
    compared_texts=24,
)


SHAPE = {
    "vocab_size": 600,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
}


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory: pytest.TempPathFactory) -> LedgerSettings:
    """The small ledger with an encoder of no size."""
    folder = tmp_path_factory.mktemp("encoder")
    prepare_split(folder, None, 1000)
    write_roberta(folder, SHAPE)
    return replace(SMALL, encoder="roberta", encoder_path=str(folder / "roberta"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    classifier_defects._prepare(None, folder)
    return folder


def side(values: Any, groups: Any = None) -> dict[str, list[Any]]:
    return {"values": list(values), "groups": [str(group) for group in (range(len(values)) if groups is None else groups)]}


def test_an_interval_over_single_rows_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)

    found = clustered_mean({**side(values / 10)})

    half = 1.966 * values.std(ddof=1) / np.sqrt(400) / 10
    assert found["high"] - found["value"] == pytest.approx(half, rel=0.01)


def test_copies_of_a_row_add_no_certainty() -> None:
    values = np.random.default_rng(2).random(50).round()
    once, thrice = side(values), side(np.tile(values, 3), np.tile(np.arange(50), 3))

    assert clustered_mean(thrice) == pytest.approx(clustered_mean(once))


def test_a_rate_that_never_happened_is_not_certain_to_be_zero() -> None:
    assert clustered_mean(side([0.0] * 64)) == {"value": 0, "low": 0, "high": pytest.approx(0.056, abs=0.001)}
    assert clustered_mean(side([1.0] * 64))["low"] == pytest.approx(0.944, abs=0.001)


def test_rows_that_both_sides_judged_are_pairs() -> None:
    generator = np.random.default_rng(3)
    hard = generator.random(500) < 0.5
    one, other = side(hard.astype(float)), side((hard | (generator.random(500) < 0.1)).astype(float))
    apart = {**other, "groups": [f"other {group}" for group in other["groups"]]}

    paired, unpaired = difference(one, other), difference(one, apart)

    assert paired["value"] == unpaired["value"] > 0
    assert paired["low"] > 0
    assert paired["high"] - paired["low"] < 0.6 * (unpaired["high"] - unpaired["low"])
    assert difference(one, one) == {"value": 0, "low": 0, "high": 0}


def test_intervals_of_differences_and_ratios_hold_their_promise() -> None:
    generator = np.random.default_rng(4)
    held = {"difference": 0, "ratio": 0}
    for _ in range(300):
        text = generator.random(150)  # how easy each text is; two rows are the same text
        rows = np.repeat(np.arange(150), 2)
        one = side((generator.random(300) < 0.4 + 0.4 * text[rows]).astype(float), rows)
        other = side((generator.random(300) < 0.2 + 0.4 * text[rows]).astype(float), rows)
        found = difference(one, other), ratio(one, other)
        held["difference"] += found[0]["low"] <= -0.2 <= found[0]["high"]
        held["ratio"] += found[1]["low"] <= 0.4 / 0.6 <= found[1]["high"]

    assert 0.91 <= held["difference"] / 300 <= 0.99
    assert 0.91 <= held["ratio"] / 300 <= 0.99


def test_picking_among_equals_flatters_and_picking_among_one_does_not() -> None:
    generator = np.random.default_rng(5)
    equals = (generator.random((10, 400)) < 0.6).astype(float)
    groups = [str(number) for number in range(400)]

    reported, honest = picked_on_half(equals, groups)
    alone = picked_on_half(equals[:1], groups)

    # The best of ten draws is 1.54 standard errors above their mean on the half that picked it.
    assert reported.mean() - honest.mean() == pytest.approx(2 * 1.54 * np.sqrt(0.24 / 200) / 2, abs=0.025)
    assert alone[0].mean() == pytest.approx(alone[1].mean(), abs=0.005)


def test_the_deviation_of_the_flattery_is_that_of_other_test_parts() -> None:
    generator = np.random.default_rng(6)
    groups = [str(number) for number in range(200)]
    parts = [(generator.random((4, 200)) < 0.6).astype(float) for _ in range(60)]
    flatteries = [np.subtract(*picked_on_half(part, groups, halvings=60)).mean() for part in parts]

    estimated = np.mean([flattery_deviation([part], groups, draws=40, halvings=30) for part in parts[:10]])

    assert 0.7 < estimated / np.std(flatteries) < 2, "at most twice too wide"


def test_a_checkpoint_that_is_better_everywhere_is_picked_without_flattery() -> None:
    good = np.array([[1.0] * 90 + [0.0] * 10, [1.0] * 50 + [0.0] * 50])

    reported, honest = picked_on_half(good, [str(number) for number in range(100)])

    assert honest.mean() == pytest.approx(0.9, abs=0.01)
    assert reported.mean() == pytest.approx(0.9, abs=0.01)


def test_every_epoch_of_a_training_is_judged(home: Path, with_encoder: LedgerSettings) -> None:
    found = run_variant("D11", 1, home, with_encoder)

    right = np.array(found["right"])
    assert right.shape == (2, len(found["group"]))
    assert len(set(found["validation_losses"])) == 2
    assert classifier_defects._picked_by_test([found])[0]["rows"] == len(found["group"])


def test_planted_repeats_leak_and_are_known_by_heart(home: Path) -> None:
    found = run_variant("D12", 1, home, SMALL)

    planted = found["planted"]["leaked"]
    assert len(planted["original"]["values"]) > len(found["found"]["leaked"]["original"]["values"])
    assert np.mean(planted["original"]["values"]) > 0.9
    assert np.mean(planted["right"]["values"]) < np.mean(planted["original"]["values"]) - 0.2
    assert planted["original"]["groups"] == planted["right"]["groups"]


def test_a_lower_cap_trains_on_fewer_rows_and_is_judged_on_the_same(home: Path) -> None:
    found = run_variant("D13", 1, home, SMALL)

    assert found["share"]["per_class"] == 10, "never fewer than ten rows a class"
    assert found["share"]["train_rows"]["original"] < found["share"]["train_rows"]["right"]
    assert found["share"]["original"]["groups"] == found["share"]["right"]["groups"]


def test_labels_compared_as_strings_never_match(home: Path) -> None:
    found = run_variant("D14-D16", 1, home, SMALL)

    assert set(found["external"]["original"]["values"]) == {0.0}
    assert np.mean(found["external"]["right"]["values"]) > 0.2
    assert found["proposed"]["taxonomy"] == "merged-27"
    filed, right = found["original"]["filed"]["values"], found["original"]["filed_right"]["values"]
    assert sum(filed) == len(right)


def test_padding_costs_time_and_changes_no_answer(home: Path, with_encoder: LedgerSettings) -> None:
    found = run_variant("D10", 1, home, with_encoder)

    assert found["original"] > 0
    assert found["right"] > 0
    assert found["same_label"] == 1
    assert found["largest_difference"] < 1e-3
    assert found["padding_share"]["right"] < found["padding_share"]["original"]


def test_the_ledger_is_made_once_and_shown_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def pretend(home: Path, seeds: Any, settings: LedgerSettings, workers: int) -> dict[tuple[str, int], Any]:
        calls.append((str(home), workers))
        return {(name, seed): _made_up(name, seed) for name in classifier_defect_runs.RUNS for seed in seeds}

    monkeypatch.setattr(classifier_defects, "_run_all", pretend)
    monkeypatch.setattr(classifier_defects, "in_own_process", lambda work, *arguments: work(*arguments))

    results = classifier_defects.run(seeds=(1, 2), workers=1, work=tmp_path)
    page = classifier_defects.table(results).replace("\\", "")
    classifier_defects.write_plot(results, tmp_path / "ledger.png")

    json.dumps(results, allow_nan=False)
    assert calls == [(str(tmp_path), 1)]
    lines = [line for line in page.splitlines() if line.startswith("| D")]
    assert {line[2:5] for line in lines} == set(classifier_defects.DEFECTS)
    [articles] = [line for line in lines if "articles that match" in line]
    assert "| 0.0% [0.0%, 16.8%] | 50.0%" in articles
    assert "+50.0 points [+33.8, +66.2] | +50.0 to +50.0 |" in articles
    [speed] = [line for line in lines if "training examples a second" in line]
    assert "| 2 (2 to 2) | 80 (80 to 80) | 40.00 times |" in speed
    [times] = [line for line in lines if "certified 90 %, times" in line]
    assert "2.00 times" in times
    assert [line for line in lines if "as they are" in line and "not measured" in line], "no row repeats another"
    assert (tmp_path / "ledger.png").stat().st_size > 5000


def test_finished_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in classifier_defect_runs.RUNS:
        (tmp_path / f"{name}-7.json").write_text(json.dumps(_made_up(name, 7)))

    def work(*_: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(classifier_defects, "run_variant", work)

    assert len(classifier_defects._run_all(tmp_path, (7,), SMALL, 1)) == len(classifier_defect_runs.RUNS)


def test_the_newest_proposal_is_the_other_taxonomy(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["merged-27", "proposed-18", "proposed-21", "raw-42"]
    monkeypatch.setattr(classifier_defect_runs, "packaged_taxonomies", lambda: names)

    assert classifier_defect_runs.proposed_taxonomy() == "proposed-21"


def _made_up(name: str, seed: int) -> dict[str, Any]:
    half = side([0.0, 1.0] * 20)
    most = side([0.0, 1.0, 1.0, 1.0] * 10)
    nothing = side([])
    if name == "D10":
        shares = {"original": 0.9, "right": 0.1}
        return {"original": 2.0, "right": 80.0, "padding_share": shares, "same_label": 1.0, "largest_difference": 1e-6}
    if name == "D11":
        return {"right": [half["values"], most["values"]], "validation_losses": [2.0, 1.0], "group": half["groups"]}
    if name == "D12":
        both = {"original": most, "right": half}
        return {
            "found": {"all": both, "leaked": {"original": nothing, "right": nothing}},
            "planted": {"all": both, "leaked": both},
        }
    if name == "D13":
        found = {"per_class": 10, "train_rows": {"original": 100, "right": 200}, "original": half, "right": most}
        return {"cap": found, "share": found}
    low, filed = side([0.0, 0.0, 0.0, 1.0] * 10), {"right": half, "filed_right": most}
    return {
        "original": {"taxonomy": "original-29", "threshold": 0.9, "filed": low, **filed},
        "proposed": {"taxonomy": "proposed-20", "threshold": 0.8, "filed": half, **filed},
        "external": {"original": side([0.0] * 20), "right": half},
    }
