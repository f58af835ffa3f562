"""Taxonomies and crosswalks: names are found however they are written, and nothing is forced into a class."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable
from newsjuice_pipelines.classification.corpus.taxonomy import TaxonomyError, load_taxonomy, packaged_taxonomies, write_taxonomy
from newsjuice_pipelines.classification.serving.crosswalk import load_crosswalk


@pytest.mark.parametrize(("name", "classes"), [("original-29", 29), ("raw-42", 42), ("merged-27", 27)])
def test_a_packaged_taxonomy_covers_every_section_of_the_demo(name: str, classes: int, demo_table: HuffPostTable) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy.version == name
    assert len(taxonomy.classes) == classes
    assert list(taxonomy.classes) == sorted(taxonomy.classes)
    assert {taxonomy.class_of(section) for section in demo_table.rows["category"]} == set(taxonomy.classes)


def test_the_original_taxonomy_maps_as_the_original_experiment_did(real_data: Path) -> None:
    wanted = json.loads((real_data / "huffpost_category_mapping.json").read_text(encoding="utf-8"))
    assert load_taxonomy("original-29").mapping == wanted


@pytest.mark.parametrize("written", ["FOOD & DRINK", "food & drink", "  Food  &\tDrink "])
def test_sections_are_found_whatever_their_case_and_spacing(written: str) -> None:
    assert load_taxonomy("original-29").class_of(written) == "FOOD & DRINK"


def test_an_unknown_section_has_no_class_and_is_counted(tmp_path: Path) -> None:
    rows = pd.DataFrame({"category": ["TASTE", "GARDENING", "GARDENING"]})
    facts = write_taxonomy(load_taxonomy("original-29"), rows, tmp_path)
    assert facts["unknown_categories"] == {"GARDENING": 2}
    assert facts["rows_per_class"]["FOOD & DRINK"] == facts["row_count"] == 1
    assert "POLITICS" in facts["unused_entries"]
    assert "TASTE" not in facts["unused_entries"]
    assert json.loads((tmp_path / "taxonomy.json").read_text(encoding="utf-8"))["mapping"]["TASTE"] == "FOOD & DRINK"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: x\nclasses: {A: [NEWS], B: [news]}", "'news' is listed under 'A' and under 'B'"),
        ("version: x\nclasses: {A: [no]}", "quote YAML words"),
        ("version: x\nclasses: []", "needs `version"),
        ("classes: {A: [B]}", "needs `version"),
        ("just text", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_taxonomy_that_contradicts_itself_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(TaxonomyError, match=message):
        load_taxonomy(tmp_path / "own.yaml")


def test_an_unknown_taxonomy_is_refused_with_the_known_names() -> None:
    with pytest.raises(TaxonomyError, match="original-29"):
        load_taxonomy("orginal-29")


def test_every_class_of_the_crosswalk_exists_in_a_packaged_taxonomy() -> None:
    classes = {name for taxonomy in packaged_taxonomies() for name in load_taxonomy(taxonomy).classes}
    assert {name for names in load_crosswalk().labels.values() for name in names} <= classes


@pytest.mark.parametrize("taxonomy", packaged_taxonomies())
def test_every_label_of_the_crosswalk_has_a_class_in_every_packaged_taxonomy(taxonomy: str) -> None:
    crosswalk, classes = load_crosswalk(), load_taxonomy(taxonomy).classes
    assert [label for label in crosswalk.labels if not crosswalk.acceptable(label, classes)] == []


def test_the_crosswalk_offers_only_classes_that_the_model_has() -> None:
    crosswalk = load_crosswalk()
    assert crosswalk.acceptable(" athletics ", ["SPORTS", "NEWS"]) == ("SPORTS",)
    assert crosswalk.acceptable("Business", ["BUSINESS & FINANCE"]) == ("BUSINESS & FINANCE",)
    assert crosswalk.acceptable("Athletics", ["NEWS"]) == ()
    assert crosswalk.acceptable("Law", ["POLITICS", "CRIME"]) == ()


def test_a_crosswalk_that_lists_a_label_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("version: x\nlabels: {Arts: [ARTS], arts: [MEDIA]}", encoding="utf-8")
    with pytest.raises(TaxonomyError, match="listed twice"):
        load_crosswalk(tmp_path / "own.yaml")
