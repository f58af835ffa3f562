"""The defect ledger: sixteen defects, and what was measured of each in words."""

from newsjuice_pipelines.benchmarks.classifier_defects import DEFECTS as CLASSIFIER_DEFECTS
from newsjuice_pipelines.podcast.training.defects import DEFECTS as PODCAST_DEFECTS
from newsjuice_pipelines.site.ledger import DEFECTS, NOTHING_FOUND, measured


def change(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


def test_all_sixteen_are_there_in_order_and_all_that_are_measured_among_them() -> None:
    names = [defect.name for defect in DEFECTS]

    assert names == [f"D{number}" for number in range(1, 17)]
    assert {*PODCAST_DEFECTS, *CLASSIFIER_DEFECTS} <= set(names)


def test_a_change_beyond_chance_is_a_sentence_and_another_is_not() -> None:
    right = {"ended": {"value": 0.57}, "cap_hit": {"value": 0.33}, "leaked_rows": {"value": 0}}
    worse = {"ended": change(-0.5, -0.4), "cap_hit": change(-0.1, 0.1), "answer_loss": change(-0.1, 0.1)}
    same = {"against": "right", "change": {"ended": change(-0.1, 0.1)}, "ended": {"value": 0.5}}
    variants = {"right": right, "D2": {"against": "right", "change": worse, "ended": {"value": 0.12}}, "D4": same}

    found = measured({"defects": {"variants": variants}})

    assert found == {"D2": ["scripts that end by themselves: 12% instead of 57%"], "D4": [NOTHING_FOUND]}


def test_classifier_findings_without_a_side_are_left_out() -> None:
    findings = [
        {
            "defect": "D16",
            "measure": "matching articles",
            "kind": "share",
            "original": {"value": 0.0},
            "right": {"value": 0.41},
        },
        {"defect": "D15", "measure": "precision", "kind": "share", "original": {"value": 0.6}, "right": None},
        {"defect": "D10", "measure": "examples a second", "kind": "speed", "original": {"value": 1.2}, "right": {"value": 57.1}},
    ]

    found = measured({"classifier_defects": {"findings": findings}})

    assert found == {
        "D16": ["matching articles: 0.0% instead of 41.0%"],
        "D10": ["examples a second: 1.2 instead of 57.1"],
    }


def test_nothing_measured_is_no_error() -> None:
    assert measured({}) == {}
