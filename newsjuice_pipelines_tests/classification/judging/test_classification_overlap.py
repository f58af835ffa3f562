"""The audit of a split: leaks and format are measured, the test part teaches it nothing, and the page shows every finding."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable
from newsjuice_pipelines.classification.corpus.split import PARTS, SplitConfig, balanced_split, read_part, write_split
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy
from newsjuice_pipelines.classification.judging import class_curve, evaluation_page, overlap_page
from newsjuice_pipelines.classification.judging.class_curve import fitted_half
from newsjuice_pipelines.classification.judging.label_problems import Audited
from newsjuice_pipelines.classification.judging.overlap import AuditConfig, format_features, format_leak, overlap_report
from newsjuice_pipelines.classification.judging.overlap_page import plot_labels


@pytest.fixture(scope="module")
def demo_split(tmp_path_factory: pytest.TempPathFactory, demo_table: HuffPostTable) -> Path:
    out = tmp_path_factory.mktemp("split")
    write_split(balanced_split(demo_table.rows, load_taxonomy("original-29"), SplitConfig()), out)
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, demo_split: Path) -> Path:
    out = tmp_path_factory.mktemp("report")
    overlap_report(demo_split, out)
    return out


def results_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def edited(split: Path, target: Path, part: str, change: Any) -> Path:
    """A copy of a split with one part changed."""
    copy = shutil.copytree(split, target)
    change(read_part(copy, part)).to_parquet(copy / f"{part}.parquet", index=False)
    return copy


def test_a_report_holds_results_page_plots_and_a_taxonomy(report: Path) -> None:
    written = {path.name for path in report.iterdir()}
    assert written >= {"results.json", "report.md", "proposed.yaml", "class_similarity.png"}
    assert load_taxonomy(report / "proposed.yaml").classes
    assert "{" not in (report / "report.md").read_text(encoding="utf-8")


def test_a_proposal_that_joins_nothing_says_so_and_is_not_recommended(report: Path) -> None:
    page = (report / "report.md").read_text(encoding="utf-8")
    assert results_in(report)["proposal"]["overlapping"] is None
    assert "has 42 classes without parents. It joins no sections and mends nothing" in page
    assert "set `name`" not in page
    assert "`proposed-18`: chosen on such texts" in page
    assert page.count("chosen on one sample of real headlines") == 2
    assert not (report / "proposed-overlapping.yaml").exists()


@pytest.fixture(scope="module")
def undated_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sections without dates, two of them on one topic."""
    split = tmp_path_factory.mktemp("undated")
    generator, rows = random.Random(5), []
    for number in range(900):
        section = ("TASTE", "FOOD & DRINK", "SPORTS")[number % 3]
        topic = "ball" if section == "SPORTS" else "bread"
        words = " ".join(f"{topic}{generator.randrange(30)}" for _ in range(4))
        rows.append({"text": f"{words} {number}", "category": section, "date": "", "row_id": str(number), "group": str(number)})
    frame = pd.DataFrame(rows).assign(label=lambda rows: rows["category"])
    classes = sorted(frame["label"].unique())
    frame["label_id"] = frame["label"].map(classes.index)
    place = {1: "validation", 2: "calibration", 3: "test"}
    frame["part"] = [place.get(number % 10, "train") for number in range(len(frame))]
    for part in PARTS:
        frame[frame["part"] == part].drop(columns="part").to_parquet(split / f"{part}.parquet", index=False)
    (split / "split.json").write_text(json.dumps({"classes": classes, "parents": classes}), encoding="utf-8")
    return split


@pytest.fixture(scope="module")
def undated_report(tmp_path_factory: pytest.TempPathFactory, undated_split: Path) -> Path:
    out = tmp_path_factory.mktemp("undated-report")
    overlap_report(undated_split, out)
    return out


def test_sections_that_overlap_without_years_are_joined_in_a_second_file(undated_report: Path) -> None:
    assert len(load_taxonomy(undated_report / "proposed.yaml").classes) == 3
    second = load_taxonomy(undated_report / "proposed-overlapping.yaml")
    assert second.class_of("TASTE") == second.class_of("FOOD & DRINK") != second.class_of("SPORTS")
    rows = {entry["taxonomy"]: entry for entry in results_in(undated_report)["taxonomies"]}
    assert rows["proposed-overlapping"]["accuracy"] > rows["proposed"]["accuracy"] + 0.2


def test_compared_proposals_are_built_from_the_half_that_is_not_shown(
    undated_split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_overlaps(audited: Audited, seed: int) -> Audited:
        half = fitted_half(audited, seed)
        assert half is not None
        return replace(half, joint=np.eye(3) / 3)

    monkeypatch.setattr(class_curve, "fitted_half", nothing_overlaps)
    overlap_report(undated_split, tmp_path)
    assert len(load_taxonomy(tmp_path / "proposed-overlapping.yaml").classes) == 2
    rows = {entry["taxonomy"]: entry["classes"] for entry in results_in(tmp_path)["taxonomies"]}
    assert rows["proposed-overlapping"] == 3


def test_the_page_recommends_the_file_that_joins_and_only_that(undated_report: Path) -> None:
    page = (undated_report / "report.md").read_text(encoding="utf-8")
    assert "`proposed.yaml`, beside this page, has 3 classes without parents. It joins no sections" in page
    assert "to the path of `proposed-overlapping.yaml` and materialise" in page
    assert "built for this table from the first texts alone" in page


def entry(taxonomy: str, classes: int, accuracy: float) -> dict[str, Any]:
    return {"taxonomy": taxonomy, "classes": classes, "accuracy": accuracy, "filed_share": 0.0}


def test_every_place_of_the_curve_has_one_label_without_copies_of_packaged_taxonomies() -> None:
    entries = [entry("proposed", 42, 0.4), entry("raw-42", 42, 0.4), entry("this split", 29, 0.5), entry("original-29", 29, 0.5)]
    assert plot_labels(entries) == {42: "raw-42", 29: "original-29"}
    assert plot_labels([*entries, entry("proposed-overlapping", 29, 0.6)])[29] == "original-29, proposed-overlapping"


def test_the_similarity_of_classes_is_coloured_up_to_the_highest_without_the_diagonal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(overlap_page, "heatmap", lambda values, *_: drawn.append(values))
    overlap_page.similarity_plot([[1.0, 0.1], [0.1, 1.0]], ("A", "B"), tmp_path / "plot.png")
    ((one, other),) = drawn
    assert [one[1], other[0]] == [1.0, 1.0]
    assert math.isnan(one[0])
    assert math.isnan(other[1])


def test_the_risk_plot_shows_no_share_where_nothing_is_filed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legends: list[list[str]] = []

    def legend_of(figure: Any, path: Path) -> None:
        legends.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])

    monkeypatch.setattr(evaluation_page, "save_figure", legend_of)
    for share in (0.0, 0.25):
        results = {
            "risk_coverage": {"curve": [{"coverage": 0.5, "error": 0.1}, {"coverage": 1.0, "error": 0.3}]},
            "certified": {"target_precision": 0.9},
            "cascade": {"filed": {"share": {"value": share}}},
        }
        evaluation_page.risk_coverage_plot(results, tmp_path / "plot.png")
    assert legends == [["10 % errors"], ["10 % errors", "filed: 25.0 %"]]


def test_sections_joined_by_a_taxonomy_are_audited_on_their_own_too(report: Path) -> None:
    results = results_in(report)
    assert results["labels"]["class_count"] == 29
    assert results["sections"]["class_count"] == 42


def test_a_taxonomy_of_plain_sections_is_audited_once(
    demo_table: HuffPostTable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    split, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("raw-report")
    write_split(balanced_split(demo_table.rows, load_taxonomy("raw-42"), SplitConfig()), split)
    overlap_report(split, out)
    assert results_in(out)["sections"] is None
    assert results_in(out)["labels"]["class_count"] == 42


def test_a_clean_split_shares_no_text(report: Path) -> None:
    results = results_in(report)
    assert results["shared_texts"] == results["shared_groups"] == 0


def test_a_text_on_two_sides_is_found_with_its_near_duplicate(demo_split: Path, tmp_path: Path) -> None:
    first = read_part(demo_split, "train").iloc[[0]]
    leaked = first.assign(row_id="leak", text=first["text"] + " !")
    copy = edited(demo_split, tmp_path / "split", "test", lambda rows: pd.concat([rows, first, leaked]))
    results = overlap_report(copy, tmp_path_of(tmp_path))
    assert results["shared_texts"] == 1
    assert results["shared_groups"] == 1
    assert results["near_duplicate_pairs"] >= 2


def tmp_path_of(folder: Path) -> Path:
    out = folder / "report"
    out.mkdir()
    return out


def test_the_test_part_teaches_the_audit_nothing(demo_split: Path, report: Path, tmp_path: Path) -> None:
    def relabel(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(category="ARTS", label="ARTS", text=[f"{text} changed" for text in rows["text"]])

    copy = edited(demo_split, tmp_path / "split", "test", relabel)
    overlap_report(copy, tmp_path_of(tmp_path))
    before, after = results_in(report), results_in(tmp_path / "report")
    for name in ("labels", "sections", "proposal", "curve", "taxonomies", "format"):
        assert after[name] == before[name]


def test_the_order_of_the_rows_does_not_matter(demo_split: Path, report: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo_split, tmp_path / "split")
    for part in PARTS:
        read_part(copy, part).sample(frac=1, random_state=4).to_parquet(copy / f"{part}.parquet", index=False)
    overlap_report(copy, tmp_path_of(tmp_path))
    assert results_in(tmp_path / "report")["sections"] == results_in(report)["sections"]


def test_article_text_cannot_break_out_of_the_page(demo_split: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | [x](http://evil.example) ![y](http://evil.example/y.png)"

    def spoil(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(text=[f"{evil} {text}" for text in rows["text"]])

    copy = edited(demo_split, tmp_path / "split", "train", spoil)
    overlap_report(copy, tmp_path_of(tmp_path))
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "evil.example" in page
    html = MarkdownIt("commonmark").enable("table").render(page)
    assert "<script" not in html
    assert 'href="http://evil' not in html
    assert 'src="http://evil' not in html


def test_few_texts_are_said_to_be_too_few(demo_split: Path, tmp_path: Path) -> None:
    copy = edited(demo_split, tmp_path / "split", "train", lambda rows: rows.groupby("label").head(1))
    copy = edited(copy, tmp_path / "smaller", "validation", lambda rows: rows.groupby("label").head(1))
    facts = overlap_report(copy, tmp_path_of(tmp_path))
    assert facts["labels"] is None
    assert "Too few texts" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_at_most_max_rows_are_audited(demo_split: Path, tmp_path: Path) -> None:
    assert overlap_report(demo_split, tmp_path, AuditConfig(max_rows=120))["audited_rows"] == 120


def formatted(lower_case_food: bool) -> pd.DataFrame:
    rows = []
    for number in range(200):
        food = number % 2 == 0
        text = f"A Headline About Something, Number {number}"
        rows.append(
            {"text": text.lower() if food and lower_case_food else text, "label": "FOOD" if food else "SPORT", "group": number}
        )
    return pd.DataFrame(rows)


def test_a_format_that_gives_the_class_away_is_found() -> None:
    leak = format_leak(formatted(lower_case_food=True), folds=5, seed=1)
    assert leak is not None
    assert leak["accuracy"] == 1.0
    assert leak["chance"] == 0.5
    assert leak["features"][0]["feature"] == "capital letters"
    assert leak["lower_case"] == [{"label": "SPORT", "share": 0.0}, {"label": "FOOD", "share": 1.0}]


def test_one_format_for_all_classes_gives_nothing_away() -> None:
    leak = format_leak(formatted(lower_case_food=False), folds=5, seed=1)
    assert leak is not None
    assert leak["accuracy"] < 0.65


def test_format_features_do_not_tell_words_apart() -> None:
    assert format_features("Big cats win. Yes!") == format_features("Red dogs eat. Hmm!")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 1}, "folds is 1"),
        ({"max_rows": -1}, "max_rows is -1"),
        ({"merge": "everything"}, "merge is 'everything'"),
        ({"parents": 1}, "parents is 1"),
        ({"target_precision": 1.0}, "target_precision is 1.0"),
        ({"certainty": 0.0}, "certainty is 0.0"),
    ],
)
def test_a_setting_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AuditConfig(**change)
