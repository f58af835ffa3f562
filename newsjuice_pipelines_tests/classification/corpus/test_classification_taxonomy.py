"""Taxonomies: names are found however they are written, and nothing is forced into a class."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable
from newsjuice_pipelines.classification.corpus.taxonomy import (
    Taxonomy,
    TaxonomyError,
    label_key,
    load_taxonomy,
    packaged_taxonomies,
    write_taxonomy,
    write_taxonomy_file,
)


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
    assert facts["rows_per_parent"]["HEALTH & LIFE"] == 1
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
        ("version: x\nclasses: {News: [A], NEWS: [B]}", "'NEWS' and 'News' are one name"),
        ("version: x\nclasses: {A: [a], B: [b]}\nparents: {P: [A, C]}", "'P' names 'C', which is no class"),
        ("version: x\nclasses: {A: [a], B: [b]}\nparents: {P: [A], Q: [A]}", "class 'A' is listed under 'P' and under 'Q'"),
        ("version: x\nclasses: {A: [a], B: [b]}\nparents: {a: [B]}", "'a' carries the name of a class that is not under it"),
        ("version: x\nclasses: {A: [a], B: [b]}\nparents: [A, B]", "`parents` must be"),
        ("version: x\nclasses: {A: [a], B: [b]}\nparents: {P: A}", "parent 'P' must be a text with a list"),
        ("just text", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_taxonomy_that_contradicts_itself_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(TaxonomyError, match=message):
        load_taxonomy(tmp_path / "own.yaml")


@pytest.mark.parametrize("name", packaged_taxonomies())
def test_a_packaged_taxonomy_groups_its_classes_under_a_few_parents(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert set(taxonomy.parents) == set(taxonomy.classes)
    assert 3 <= len(set(taxonomy.parents.values())) <= 12


def test_a_section_has_one_parent_in_all_first_taxonomies() -> None:
    raw, original, merged = (load_taxonomy(name) for name in ("raw-42", "original-29", "merged-27"))
    for section, name in raw.mapping.items():
        for other in (original, merged):
            owner = other.class_of(section)
            assert owner is not None
            assert other.parents[owner] == raw.parents[name]


def test_a_class_without_a_parent_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("version: x\nclasses: {A: [a], B: [b], C: [c]}\nparents: {P: [A], B: [B, C]}")
    assert load_taxonomy(tmp_path / "own.yaml").parents == {"A": "P", "B": "B", "C": "B"}
    (tmp_path / "flat.yaml").write_text("version: x\nclasses: {A: [a], B: [b]}")
    assert load_taxonomy(tmp_path / "flat.yaml").parents == {"A": "A", "B": "B"}


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    classes=st.dictionaries(NAMES, st.lists(NAMES, max_size=3), min_size=1, max_size=6),
    parents=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    description=NAMES,
)
def test_a_written_taxonomy_file_reads_back_the_same(
    tmp_path: Path, classes: dict[str, list[str]], parents: list[int], description: str
) -> None:
    names = sorted({label_key(name): name for name in classes}.values())
    mapping: dict[str, str] = {}
    for name in names:
        mapping |= {section: name for section in classes[name] if label_key(section) not in map(label_key, mapping)}
    owners = {name: f"parent of {number}" for name, number in zip(names, parents, strict=False) if number}
    taxonomy = Taxonomy("own-1", description, tuple(names), mapping, owners)
    write_taxonomy_file(taxonomy, tmp_path / "own.yaml")
    assert load_taxonomy(tmp_path / "own.yaml") == taxonomy


def test_an_unknown_taxonomy_is_refused_with_the_known_names() -> None:
    with pytest.raises(TaxonomyError, match="original-29"):
        load_taxonomy("orginal-29")
