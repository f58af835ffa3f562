"""The latency and quality reports and the decision."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.engines import open_engine
from newsjuice_pipelines.podcast.judging.decision import ThresholdsError, decide, load_thresholds, write_decision
from newsjuice_pipelines.podcast.judging.report import ReportError, latency_report, measure_single_stream, quality_report
from newsjuice_pipelines.podcast.judging.scripts import GenerationConfig, generate_scripts

Made = tuple[Path, dict[str, Any]]
GATE = {"name": "p", "report": "quality", "value": "systems/student/passes/value", "at_least": 0.9, "required": True}


@pytest.fixture(scope="module")
def student(merged: Made, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    engine = open_engine("auto", merged[0], "cpu")
    return generate_scripts(
        dataset, ["validation", "test"], engine, GenerationConfig(max_new_tokens=40), tmp_path_factory.mktemp("s")
    )


@pytest.fixture(scope="module")
def untuned(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    engine, config = open_engine("auto", base, "cpu"), GenerationConfig(max_new_tokens=40)
    return generate_scripts(dataset, ["test"], engine, config, tmp_path_factory.mktemp("b"), "qwen_podcast_text")


def test_most_of_the_time_goes_into_decoding(merged: Made, dataset: Path, student: pd.DataFrame, tmp_path: Path) -> None:
    timed = measure_single_stream(dataset, open_engine("reference", merged[0], "cpu"), prompts=2, max_new_tokens=40)

    results = latency_report(student, None, [7.5, 8.0, None], timed, tmp_path)

    single = results["single_stream"]
    assert single["scripts"] == 2
    assert single["decode_share"] > single["prefill_share"] > 0
    assert results["generation"]["teacher"] == {
        "scripts": 3,
        "measured": 2,
        "latency_p50_s": 7.75,
        "latency_p95_s": pytest.approx(7.975),
        "new_tokens_mean": None,
        "finish_reasons": None,
        "engine": "teacher",
    }
    assert results["student_over_teacher"] == pytest.approx(single["latency_p50_s"] / 7.75)


def test_a_latency_that_was_not_measured_is_said_to_be_so(student: pd.DataFrame, tmp_path: Path) -> None:
    results = latency_report(student, None, [], [], tmp_path)

    assert results["student_over_teacher"] is None
    assert "| whole script p50 (s) | not measured |" in (tmp_path / "report.md").read_text()


def test_single_requests_are_timed_by_the_reference_engine_only(merged: Made, dataset: Path) -> None:
    with pytest.raises(ReportError, match="use the reference engine"):
        measure_single_stream(dataset, open_engine("transformers_batch", merged[0], "cpu"))


def test_the_four_systems_stand_side_by_side_on_rows_that_training_never_saw(
    student: pd.DataFrame, untuned: pd.DataFrame, tmp_path: Path
) -> None:
    results = quality_report(student, untuned, tmp_path)

    assert set(results["systems"]) == {"teacher", "student", "base", "lead sentences"}
    assert {entry["scripts"] for entry in results["systems"].values()} == {4}
    assert results["systems"]["lead sentences"]["copied_5"]["value"] == 1
    assert results["systems"]["teacher"]["rouge_l"]["value"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "report.md", "failures.png"}


def test_the_tuned_model_is_closer_to_the_teacher_than_the_untuned_one(
    student: pd.DataFrame, untuned: pd.DataFrame, tmp_path: Path
) -> None:
    systems = quality_report(student, untuned, tmp_path)["systems"]

    assert systems["student"]["rouge_l"]["value"] > systems["base"]["rouge_l"]["value"]


def test_a_missing_base_is_said_to_be_not_measured(student: pd.DataFrame, tmp_path: Path) -> None:
    results = quality_report(student, None, tmp_path)

    assert results["systems"]["base"] is None
    assert "untuned base were not measured" in (tmp_path / "report.md").read_text()


def test_base_scripts_of_other_rows_are_refused(student: pd.DataFrame, untuned: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="1 rows have no base script"):
        quality_report(student, untuned.iloc[1:], tmp_path)


def test_article_text_cannot_break_out_of_the_page(student: pd.DataFrame, tmp_path: Path) -> None:
    hostile = student.assign(student_podcast_text="<script>alert(1)</script>\n# Heading\n![x](http://evil)")

    quality_report(hostile, None, tmp_path)

    page = (tmp_path / "report.md").read_text()
    assert "<script>" not in page
    assert "\n# Heading" not in page
    assert "![x]" not in page


def test_a_split_without_scripts_is_refused(student: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no student script belongs to train"):
        quality_report(student, None, tmp_path, splits=("train",))


def test_the_thresholds_in_force_read_numbers_that_the_reports_have(
    student: pd.DataFrame, untuned: pd.DataFrame, tmp_path: Path
) -> None:
    latency, quality = tmp_path / "latency", tmp_path / "quality"
    latency.mkdir(), quality.mkdir()

    decision = decide(
        latency_report(student, None, [], [], latency), quality_report(student, untuned, quality), load_thresholds()
    )

    assert decision["decision"] == "do not adopt"
    assert "time of one script (s)" in decision["reasons"], "what was not measured is never a pass"


@pytest.mark.parametrize(("prompts", "unmet"), [(5, ["enough scripts timed"]), (29, ["enough scripts timed"]), (30, [])])
def test_too_few_timings_are_never_enough(student: pd.DataFrame, tmp_path: Path, prompts: int, unmet: list[str]) -> None:
    fast = {"prompt_tokens": 400, "new_tokens": 200, "ttft_s": 0.1, "latency_s": 2.0, "finish_reason": "eos"}
    thresholds = load_thresholds()
    timing = [criterion for criterion in thresholds["criteria"] if criterion["report"] == "latency"]

    decision = decide(latency_report(student, None, [], [fast] * prompts, tmp_path), {}, {"version": "test", "criteria": timing})

    assert decision["reasons"] == unmet


def test_own_thresholds_are_read_from_their_path(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text(json.dumps({"version": "mine", "criteria": [GATE]}), encoding="utf-8")

    assert load_thresholds(str(own)) == load_thresholds(own) == {"version": "mine", "criteria": [GATE]}


@pytest.mark.parametrize("name", ["v99", "nowhere/own.yaml"])
def test_thresholds_that_do_not_exist_are_refused_with_the_choice(name: str) -> None:
    with pytest.raises(ThresholdsError, match=f"no thresholds file '{name}': use one of v1, or the path of a YAML file"):
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
    [{"at_most": 1}, {"report": "cost"}, {"required": "yes"}, {"at_leats": 3}, {"at_least": "0.9"}, {"value": 7}],
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
    assert "| p | not measured | at least 0.9 | not measured | yes |" in page


def _decide(value: float | None, *criteria: dict[str, Any]) -> dict[str, Any]:
    quality = {"systems": {"student": {"passes": {"value": value}}}}
    return decide({}, quality, {"version": "test", "criteria": list(criteria)})
