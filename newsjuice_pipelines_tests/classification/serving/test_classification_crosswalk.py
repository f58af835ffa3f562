"""Crosswalks: explicit, checked against the taxonomies, and honest about labels without a counterpart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from newsjuice_pipelines.classification.corpus.taxonomy import TaxonomyError, load_taxonomy, packaged_taxonomies
from newsjuice_pipelines.classification.serving.crosswalk import Crosswalk, Vocabulary, check_crosswalk, load_crosswalk
from newsjuice_pipelines.classification.serving.external import category_of, read_external_csv

CLASSES = ("ARTS & CULTURE", "EDUCATION", "POLITICS")


def vocabulary_of(name: str) -> Vocabulary:
    taxonomy = load_taxonomy(name)
    return Vocabulary(taxonomy.classes, tuple(taxonomy.parents[label] for label in taxonomy.classes), taxonomy.mapping)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("taxonomy", packaged_taxonomies())
def test_the_packaged_crosswalk_fits_every_packaged_taxonomy(taxonomy: str) -> None:
    check_crosswalk(load_crosswalk(), vocabulary_of(taxonomy))


@pytest.mark.parametrize("taxonomy", packaged_taxonomies())
def test_at_least_95_percent_of_the_real_labels_have_a_counterpart(taxonomy: str, real_data: Path) -> None:
    crosswalk, known = load_crosswalk(), vocabulary_of(taxonomy)
    found = (category_of(summary)[0] for summary in read_external_csv(real_data / "harvard_external.csv")["summary"])
    labels = Counter(label for label in found if label is not None)
    mapped = sum(count for label, count in labels.items() if crosswalk.acceptable(label, known))
    assert labels.total() == 426
    assert mapped / labels.total() >= 0.95
    assert all(crosswalk.is_left_out(label) for label in labels if not crosswalk.acceptable(label, known))


def test_labels_are_compared_without_regard_to_case_and_spacing() -> None:
    crosswalk = Crosswalk("test", {"Arts &  culture": ("Arts & Culture",)})
    assert crosswalk.acceptable(" ARTS & Culture ", CLASSES) == ("ARTS & CULTURE",)


def test_a_parent_stands_for_all_its_classes() -> None:
    known = Vocabulary(("DIVORCE", "PARENTING", "TECH"), ("FAMILY", "FAMILY", "TECH"))
    assert Crosswalk("test", {"Home": ("Family",)}).acceptable("home", known) == ("DIVORCE", "PARENTING")


def test_a_section_stands_for_the_class_that_holds_it() -> None:
    known = Vocabulary(("ARTS & CULTURE",), ("ARTS & CULTURE",), {"CULTURE & ARTS": "ARTS & CULTURE"})
    assert Crosswalk("test", {"Theatre": ("CULTURE & ARTS",)}).acceptable("Theatre", known) == ("ARTS & CULTURE",)


def test_a_class_is_never_widened_by_a_parent_of_the_same_name() -> None:
    known = Vocabulary(("SCIENCE", "SPACE"), ("SCIENCE", "SCIENCE"))
    assert Crosswalk("test", {"Physics": ("SCIENCE",)}).acceptable("Physics", known) == ("SCIENCE",)


def test_a_misspelt_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TaxonomyError, match=r"'POLITCS' \(for 'Law', did you mean 'POLITICS'\?\)"):
        check_crosswalk(Crosswalk("test", {"Law": ("POLITCS",)}), Vocabulary(CLASSES))


def test_a_crosswalk_that_leads_to_no_class_in_use_is_refused() -> None:
    with pytest.raises(TaxonomyError, match="vocabularies do not meet"):
        check_crosswalk(Crosswalk("test", {"Sailing": ("TRAVEL",)}), Vocabulary(CLASSES))


def test_a_class_of_a_persons_own_taxonomy_is_known() -> None:
    check_crosswalk(Crosswalk("test", {"Sailing": ("BOATS",)}), Vocabulary(("BOATS", "CARS")))


def test_a_label_known_to_have_no_counterpart_stays_unmapped(tmp_path: Path) -> None:
    crosswalk = load_crosswalk(written(tmp_path, "version: v\nlabels: {Law: [POLITICS]}\nno_counterpart: [Opinion]\n"))
    assert crosswalk.is_left_out("opinion ")
    assert not crosswalk.is_left_out("Law")
    assert crosswalk.acceptable("Opinion", CLASSES) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {Law: [POLITICS]}", "needs `version"),
        ("version: v\nlabels: {Law: POLITICS}", "list of class names"),
        ("version: v\nlabels: {Law: [1]}", "list of class names"),
        ("version: v\nlabels: {Law: }", "list of class names"),
        ("version: v\nlabels: {Law: []}", "no_counterpart"),
        ("version: v\nlabels: {Law: [POLITICS], law: [CRIME]}", "listed twice"),
        ("version: v\nlabels: {Law: [POLITICS]}\nno_counterpart: [LAW]", "listed twice"),
        ("version: v\nlabels: {Law: [POLITICS]}\nno_counterpart: Opinion", "must be a list"),
    ],
)
def test_a_mistyped_crosswalk_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TaxonomyError, match=message):
        load_crosswalk(written(tmp_path, text))
