"""Taxonomy proposals: renamed sections become one, other overlaps are only listed, formats are told from topics by measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy, packaged_taxonomies, write_taxonomy_file
from newsjuice_pipelines.classification.judging.class_curve import class_curve, compare_taxonomies, fitted_half, halves
from newsjuice_pipelines.classification.judging.label_problems import Audited, audit
from newsjuice_pipelines.classification.judging.proposals import (
    RENAMED,
    SAME_TIME,
    YEARS_UNKNOWN,
    chance_overlap,
    group_sections,
    proposal_facts,
    propose,
    proposed_taxonomy,
)

WORDS_PER_TOPIC = 12
TOPIC_OF = {  # section: the topic that its texts are about
    "PARENTS": "family",
    "PARENTING": "family",
    "GREEN": "nature",
    "ENVIRONMENT": "nature",
    "TASTE": "food",
    "FOOD & DRINK": "food",
    "SPORTS": "sport",
    "CRIME": "crime",
    "SCIENCE": "science",
    "TRAVEL": "travel",
}
YEARS = {
    "PARENTING": (2012, 2013),
    "PARENTS": (2014, 2018),
    "GREEN": (2012, 2018),
    "ENVIRONMENT": (2012, 2018),
    "SPORTS": (2012, 2014),
    "CRIME": (2015, 2018),
}
FORMAT = "GLAD TIDINGS"
ROWS = 120


def written_text(topic: str, generator: np.random.Generator) -> str:
    own = " ".join(f"{topic}{number}" for number in generator.integers(WORDS_PER_TOPIC, size=3))
    return f"{own} {' '.join(f'common{number}' for number in generator.integers(40, size=3))} {generator.integers(10**9)}"


def dated(section: str, generator: np.random.Generator) -> str:
    if section not in YEARS:
        return ""
    first, last = YEARS[section]
    return f"{generator.integers(first, last + 1)}-{generator.integers(1, 13):02d}-15"


@pytest.fixture(scope="module")
def audited() -> Audited:
    generator = np.random.default_rng(7)
    topics = sorted(set(TOPIC_OF.values()))
    rows = []
    for section in [*TOPIC_OF, FORMAT]:
        for number in range(ROWS):
            topic = TOPIC_OF.get(section) or str(generator.choice(topics))
            identity = f"{section}-{number}"
            text = written_text(topic, generator)
            if section == FORMAT and number % 3 == 0:  # some of its texts say what they are
                text += " glad tidings"
            rows.append({"row_id": identity, "text": text, "category": section, "group": identity})
            rows[-1]["date"] = dated(section, generator)
    found = audit(pd.DataFrame(rows).assign(label=lambda frame: frame["category"]), "category", folds=5, seed=1)
    assert found is not None
    return found


def kinds(audited: Audited) -> dict[tuple[str, ...], str]:
    return {tuple(pair["sections"]): pair["kind"] for pair in propose(audited).pairs}


def test_sections_that_overlap_and_follow_one_another_are_renamed(audited: Audited) -> None:
    assert kinds(audited)["PARENTING", "PARENTS"] == RENAMED


def test_sections_that_overlap_in_the_same_years_are_listed_apart(audited: Audited) -> None:
    assert kinds(audited)["ENVIRONMENT", "GREEN"] == SAME_TIME


def test_sections_that_overlap_without_dates_are_listed_apart(audited: Audited) -> None:
    assert kinds(audited)["FOOD & DRINK", "TASTE"] == YEARS_UNKNOWN


def test_sections_that_follow_one_another_on_other_topics_are_no_pair(audited: Audited) -> None:
    assert ("CRIME", "SPORTS") not in kinds(audited)


def test_only_renamed_sections_are_joined_under_their_newest_name(audited: Audited) -> None:
    proposal = propose(audited)
    joined = {name: group for name, group in zip(proposal.names, proposal.groups, strict=True) if len(group) > 1}
    assert joined == {"PARENTS": ("PARENTING", "PARENTS")}


def test_all_that_overlap_are_joined_when_asked(audited: Audited) -> None:
    joined = {group for group in propose(audited, merge="overlapping").groups if len(group) > 1}
    assert joined == {("PARENTING", "PARENTS"), ("ENVIRONMENT", "GREEN"), ("FOOD & DRINK", "TASTE")}


def test_a_few_dates_do_not_make_years_known(audited: Audited) -> None:
    sparse = audited.rows.copy()
    sparse.loc[(sparse["category"] == "PARENTS") & (np.arange(len(sparse)) % 3 > 0), "date"] = ""
    fewer = Audited(sparse, audited.names, audited.given, audited.probabilities, audited.joint, {})
    assert kinds(fewer)["PARENTING", "PARENTS"] == YEARS_UNKNOWN


def test_a_label_that_takes_any_topic_is_flagged_as_a_format_and_no_topic_is(audited: Audited) -> None:
    assert propose(audited).flagged == (FORMAT,)


def test_the_formats_are_listed_with_what_was_just_missed_next_to_the_flagged(audited: Audited) -> None:
    formats = propose(audited).formats
    assert formats[0]["sections"] == [FORMAT]
    assert formats[0]["missed_by"] <= 0
    gaps = [entry["missed_by"] for entry in formats]
    assert gaps == sorted(gaps)
    assert all(entry["format"] == (entry["missed_by"] <= 0) for entry in formats)
    assert all(entry["missed_by"] >= round(entry["f1_to_median"] - 0.65, 4) for entry in formats)


def test_a_proposal_that_brings_nothing_together_has_no_parents(audited: Audited) -> None:
    assert proposal_facts(propose(audited, parent_count=100))["parent_count"] == 0
    assert 2 <= proposal_facts(propose(audited, parent_count=4))["parent_count"] <= 4


def test_the_first_half_knows_nothing_of_the_other(audited: Audited) -> None:
    shown = ~halves(audited, seed=1)
    spoilt = audited.probabilities.copy()
    spoilt[shown] = np.roll(spoilt[shown], 1, axis=1)
    half = fitted_half(audited, seed=1)
    other = fitted_half(replace(audited, probabilities=spoilt), seed=1)
    assert half is not None
    assert other is not None
    assert not set(half.rows["row_id"]) & set(audited.rows["row_id"][shown])
    assert np.array_equal(half.joint, other.joint)
    assert not np.allclose(half.joint, audited.joint)


@pytest.mark.parametrize("merge", ["renamed", "overlapping"])
def test_the_proposed_file_is_a_taxonomy_that_holds_every_section_once(audited: Audited, merge: str, tmp_path: Path) -> None:
    proposal = propose(audited, merge=merge, parent_count=4)
    write_taxonomy_file(proposed_taxonomy(proposal, {"TINY": 3}, merge), tmp_path / "proposed.yaml")
    taxonomy = load_taxonomy(tmp_path / "proposed.yaml")
    assert {section: taxonomy.class_of(section) for section in audited.names} == {
        section: name for name, group in zip(proposal.names, proposal.groups, strict=True) for section in group
    }
    assert taxonomy.class_of("tiny") == "TINY"
    assert taxonomy.version == f"proposed-{len(taxonomy.classes)}"


def test_sections_on_one_topic_share_a_parent_in_the_proposed_taxonomy(audited: Audited) -> None:
    taxonomy = proposed_taxonomy(propose(audited, parent_count=4), {}, "renamed")
    assert set(taxonomy.parents) == set(taxonomy.classes)
    assert 2 <= len(set(taxonomy.parents.values())) <= 4
    assert taxonomy.parents["ENVIRONMENT"] == taxonomy.parents["GREEN"]
    assert taxonomy.parents["TASTE"] == taxonomy.parents["FOOD & DRINK"]


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_labels_drawn_by_lot_overlap_fully_whatever_the_sizes(one: float, other: float, mixed: float) -> None:
    by_lot = one * other / (one + other)
    joint = np.array([[one - mixed * by_lot, mixed * by_lot], [mixed * by_lot, other - mixed * by_lot]]) / (one + other)
    assert chance_overlap(joint)[0, 1] == pytest.approx(mixed, abs=1e-9)


def test_a_rare_class_that_is_taken_for_a_common_one_does_not_overlap_with_it() -> None:
    joint = np.array([[0.02, 0.03, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.45]])
    assert chance_overlap(joint)[0, 1] == 0.0


def test_a_chain_of_neighbours_alone_does_not_become_one_class() -> None:
    overlap = np.array([[1.0, 0.4, 0.0], [0.4, 1.0, 0.35], [0.0, 0.35, 1.0]])
    assert group_sections(("A", "B", "C"), overlap, 0.3) == (("A", "B"), ("C",))


def test_the_curve_shows_every_number_of_classes_down_to_two(audited: Audited) -> None:
    points = class_curve(audited, seed=1, target=0.9, certainty=0.95)["points"]
    assert [point["classes"] for point in points] == list(range(len(audited.names), 1, -1))
    assert {frozenset(point["joined"]) for point in points[1:4]} == {
        frozenset(pair) for pair in (("PARENTING", "PARENTS"), ("ENVIRONMENT", "GREEN"), ("FOOD & DRINK", "TASTE"))
    }


def test_joining_what_overlaps_files_more_at_the_same_certificate(audited: Audited) -> None:
    points = {point["classes"]: point for point in class_curve(audited, seed=1, target=0.7, certainty=0.95)["points"]}
    size = len(audited.names)
    assert points[size - 3]["filed_share"] > 1.3 * points[size]["filed_share"]
    assert points[size - 3]["accuracy"] > points[size]["accuracy"] + 0.1
    assert points[size - 3]["filed_precision"] >= 0.7


def test_both_halves_of_the_curve_are_free_of_shared_groups(audited: Audited) -> None:
    pairs = audited.rows.assign(group=[str(number // 2) for number in range(len(audited.rows))])
    fitted = halves(Audited(pairs, audited.names, audited.given, audited.probabilities, audited.joint, {}), seed=1)
    assert not set(pairs["group"][fitted]) & set(pairs["group"][~fitted])
    assert 0.4 < fitted.mean() < 0.6


def test_a_taxonomy_against_itself_files_as_much() -> None:
    generator = np.random.default_rng(3)
    sections = sorted(load_taxonomy("original-29").mapping)
    owner = np.repeat(np.arange(len(sections)), 30)
    probabilities = generator.dirichlet(np.full(len(sections), 0.02), size=len(owner))
    hit = generator.uniform(size=len(owner)) < 0.95
    probabilities[hit] = 0.001
    probabilities[hit, owner[hit]] = 1 - 0.001 * (len(sections) - 1)
    rows = pd.DataFrame({"group": [str(number) for number in range(len(owner))]})
    known = Audited(rows, tuple(sections), owner, probabilities, np.eye(len(sections)) / len(sections), {})
    compared = compare_taxonomies(known, {"same": load_taxonomy("original-29").mapping}, seed=1, target=0.9, certainty=0.95)
    by_name = {entry["taxonomy"]: entry for entry in compared}
    assert by_name["same"]["filed_times_original"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert by_name["original-29"]["filed_times_original"] is None
    assert {name for name, entry in by_name.items() if entry["chosen_on_such_texts"]} == {"proposed-18"}
    assert set(by_name) == {"same", *packaged_taxonomies()}


def test_the_packaged_proposal_joins_renamed_sections_under_a_few_parents() -> None:
    (name,) = (name for name in packaged_taxonomies() if name.startswith("proposed-"))
    proposed, raw = load_taxonomy(name), load_taxonomy("raw-42")
    assert set(proposed.mapping) == set(raw.mapping)
    assert name == proposed.version == f"proposed-{len(proposed.classes)}"
    for pair in (
        ("PARENTS", "PARENTING"),
        ("WELLNESS", "HEALTHY LIVING"),
        ("THE WORLDPOST", "WORLDPOST"),
        ("TASTE", "FOOD & DRINK"),
    ):
        assert len({proposed.class_of(section) for section in pair}) == 1
    assert 4 <= len(set(proposed.parents.values())) <= 12
