"""The decision on the student: criteria, thresholds, and what would change the verdict."""

import json
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.judging.decision import ThresholdsError, decide, load_thresholds, write_decision

GATE = {"name": "p", "report": "quality", "value": "systems/student/passes/value", "at_least": 0.9, "required": True}


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "scripts": 200}


def reports(**changed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A latency and a quality report of a student that is worth adopting, but for what is changed."""
    found = {
        "p95": 6.0,
        "teacher_p50": 7.5,
        "passes": 0.99,
        "names": -0.01,
        "judged": None,
        "cost": 0.2,
        "teacher_cost": 0.5,
        "timed": 30,
    } | changed
    latency = {
        "single_stream": {"measured": found["timed"], "latency_p95_s": found["p95"]},
        "teacher": {"latency_p50_s": found["teacher_p50"]},
        "cost": {"student_usd_per_1000": found["cost"], "teacher_usd_per_1000": found["teacher_cost"]},
    }
    quality = {
        "systems": {"student": {"scripts": 200, "passes": estimate(found["passes"], 0.97, 1.0)}},
        "differences": {
            "names_supported": {"student_minus_teacher": estimate(found["names"], -0.03, 0.01)},
            "numbers_supported": {"student_minus_teacher": estimate(0.0)},
        },
        "judged": None if found["judged"] is None else {"win_or_tie": estimate(found["judged"])},
    }
    return latency, quality


def test_a_student_that_reaches_everything_is_adopted_though_nobody_judged_it() -> None:
    decision = decide(*reports(), load_thresholds())

    assert (decision["decision"], decision["reasons"]) == ("adopt", [])
    by_name = {criterion["name"]: criterion for criterion in decision["criteria"]}
    assert by_name["judged at least as good"]["status"] == "not measured"
    assert by_name["format passes"]["interval"] == (0.97, 1.0)
    assert by_name["slowest scripts (p95, s), against the teacher's p50"]["limit"] == 7.5


@pytest.mark.parametrize(
    ("changed", "reason", "change"),
    [
        ({"p95": 7.5}, "slowest scripts (p95, s), against the teacher's p50", "7.5 must become below 7.5\n"),
        ({"teacher_p50": None}, "slowest scripts (p95, s), against the teacher's p50", "not measured; write teacher scripts"),
        ({"passes": 0.93}, "format passes", "0.93 must become at least 0.98 (0.05 more)"),
        ({"names": -0.021}, "names supported, against the teacher", "-0.021 must become at least -0.02"),
        ({"judged": 0.44}, "judged at least as good", "0.44 must become at least 0.45"),
        ({"cost": 0.7}, "cost of 1,000 scripts (USD), against the teacher's", "0.7 must become below 0.5 (0.2 less)"),
        ({"cost": None}, "cost of 1,000 scripts (USD), against the teacher's", "not measured; name the machine"),
        ({"timed": 29}, "enough scripts timed", "29 must become at least 30 (1 more)"),
    ],
)
def test_each_criterion_alone_can_stand_against_adopting_and_says_what_would_change_that(
    changed: dict[str, Any], reason: str, change: str, tmp_path: Path
) -> None:
    decision = decide(*reports(**changed), load_thresholds())

    assert (decision["decision"], decision["reasons"]) == ("do not adopt", [reason])
    write_decision(decision, tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert change in page.partition("## What would change it")[2]


def test_a_favourable_judgement_is_no_obstacle() -> None:
    assert decide(*reports(judged=0.45), load_thresholds())["decision"] == "adopt"


def test_two_criteria_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps({"version": "mine", "criteria": [GATE, GATE]}), encoding="utf-8")

    with pytest.raises(ThresholdsError, match="two criteria of one name"):
        load_thresholds(tmp_path / "own.yaml")


def test_every_packaged_version_can_be_read() -> None:
    assert load_thresholds("v1")["version"] == "v1"
    assert load_thresholds("v2") == load_thresholds()


def test_own_thresholds_are_read_from_their_path(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text(json.dumps({"version": "mine", "criteria": [GATE]}), encoding="utf-8")

    assert load_thresholds(str(own)) == load_thresholds(own) == {"version": "mine", "criteria": [GATE]}


@pytest.mark.parametrize("name", ["v99", "nowhere/own.yaml"])
def test_thresholds_that_do_not_exist_are_refused_with_the_choice(name: str) -> None:
    with pytest.raises(ThresholdsError, match=f"no thresholds file '{name}': use one of v1, v2, or the path of a YAML file"):
        load_thresholds(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"criteria: [", "own.yaml is not valid YAML"),
        (b"version: \xff", "own.yaml is not valid YAML"),
        (b"- a list", "must hold a mapping, it holds list"),
        (b"", "must hold a mapping, it holds NoneType"),
        (b"version: mine", "needs `version: <text>` and a list `criteria`"),
        (b"version: mine\ncriteria: []", "needs `version: <text>` and a list `criteria`"),
        (b"version: 2\ncriteria: [{}]", "needs `version: <text>` and a list `criteria`"),
        (b"version: mine\ncriteria: [fast]", "criterion 'fast' needs a name"),
        (b"version: mine\ncriteria: [{report: quality}]", "needs a name"),
    ],
)
def test_a_thresholds_file_with_a_slip_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.yaml").write_bytes(content)

    with pytest.raises(ThresholdsError, match=message):
        load_thresholds(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("value", "verdict", "status"),
    [(0.95, "adopt", "pass"), (0.9, "adopt", "pass"), (0.89, "do not adopt", "fail"), (None, "do not adopt", "not measured")],
)
def test_a_required_criterion_decides(value: float | None, verdict: str, status: str) -> None:
    decision = _decide(value, GATE)

    assert (decision["decision"], decision["criteria"][0]["status"]) == (verdict, status)


def test_a_wish_does_not_stop_the_adoption() -> None:
    wish = {**GATE, "name": "wish", "at_least": 2, "required": False}

    assert _decide(0.95, GATE, wish)["decision"] == "adopt"


def test_a_threshold_on_a_number_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ThresholdsError, match="no 'speed'"):
        _decide(1.0, {**GATE, "value": "systems/student/speed/value"})


@pytest.mark.parametrize(
    "change",
    [{"at_most": 1}, {"below": "x"}, {"report": "cost"}, {"required": "yes"}, {"at_leats": 3}, {"at_least": "0.9"}, {"value": 7}],
)
def test_a_criterion_with_a_slip_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ThresholdsError, match="criterion 'p'"):
        _decide(1.0, {**GATE, **change})


def test_thresholds_that_require_nothing_are_refused() -> None:
    with pytest.raises(ThresholdsError, match="anything would be adopted"):
        _decide(1.0, {**GATE, "required": False})


def test_the_page_of_the_decision_names_what_was_not_met(tmp_path: Path) -> None:
    write_decision(_decide(None, GATE), tmp_path)

    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# Decision on the student: do not adopt")
    assert "| p | not measured | – | at least 0.9 | not measured | yes |" in page
    assert "- p: not measured; materialise the report that measures it" in page


def _decide(value: float | None, *criteria: dict[str, Any]) -> dict[str, Any]:
    quality = {"systems": {"student": {"passes": {"value": value}}}}
    return decide({}, quality, {"version": "test", "criteria": list(criteria)})
