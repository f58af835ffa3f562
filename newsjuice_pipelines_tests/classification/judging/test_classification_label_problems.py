"""The label audit: wrong labels are found by models that never saw them, and too little data is said, not guessed at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.classification.judging.label_problems import Audited, audit, label_problems, merged, true_joint

TOPICS = {
    "FOOD": "soup bread oven recipe butter onion chef kitchen flour roast garlic pasta",
    "SPORT": "goal match coach league striker referee stadium fans trophy penalty season transfer",
    "LAW": "court judge appeal verdict lawyer trial jury witness sentence prison statute bail",
    "SPACE": "rocket orbit planet comet lunar galaxy probe astronaut launch crater telescope mars",
}


def headlines(per_topic: int, seed: int = 1) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    rows = []
    for topic, words in TOPICS.items():
        for number in range(per_topic):
            text = f"{' '.join(generator.choice(words.split(), size=5))} item{topic}{number}"
            rows.append({"row_id": f"{topic}{number:04d}", "text": text, "category": topic, "group": f"{topic}{number}"})
    return pd.DataFrame(rows).assign(label=lambda frame: frame["category"], date="")


@pytest.fixture(scope="module")
def spoiled() -> tuple[Audited, set[str]]:
    rows = headlines(100)
    wrong = rows.index[::27]
    turned = dict(zip(TOPICS, [*list(TOPICS)[1:], "FOOD"], strict=True))
    rows.loc[wrong, "category"] = rows.loc[wrong, "category"].map(turned)
    audited = audit(rows, "category", folds=5, seed=3)
    assert audited is not None
    return audited, set(rows.loc[wrong, "row_id"])


def test_planted_wrong_labels_are_doubted_and_hardly_any_right_one(spoiled: tuple[Audited, set[str]]) -> None:
    audited, wrong = spoiled
    listed = {row["row_id"] for row in label_problems(audited)["listed"]}
    assert len(listed & wrong) >= 0.9 * len(wrong)
    assert len(listed - wrong) <= 2


def test_a_doubtful_row_shows_its_text_its_label_and_the_likely_one(spoiled: tuple[Audited, set[str]]) -> None:
    audited, wrong = spoiled
    row = next(row for row in label_problems(audited)["listed"] if row["row_id"] in wrong)
    assert row["text"] == audited.rows.set_index("row_id").loc[row["row_id"], "text"]
    assert row["row_id"].startswith(row["likely"])
    assert row["given"] != row["likely"]
    assert row["likely_probability"] > row["given_probability"]


def test_the_doubtful_share_of_a_class_counts_its_own_rows(spoiled: tuple[Audited, set[str]]) -> None:
    problems = label_problems(spoiled[0])
    assert sum(entry["doubtful"] for entry in problems["per_class"]) == problems["doubtful"]
    assert sum(entry["rows"] for entry in problems["per_class"]) == problems["rows"] == 400
    shares = [entry["share"] for entry in problems["per_class"]]
    assert shares == sorted(shares, reverse=True)


def test_copies_of_a_row_never_teach_the_model_that_judges_it() -> None:
    generator = np.random.default_rng(5)
    texts = [f"word{number} other{number}" for number in range(150)]
    labels = generator.choice(list(TOPICS), size=150)
    copies = [
        {"text": f"{text} {copy}", "group": text, "category": label}
        for text, label in zip(texts, labels, strict=True)
        for copy in "ab"
    ]
    audited = audit(pd.DataFrame(copies), "category", folds=5, seed=1)
    assert audited is not None
    assert audited.accuracy < 0.45, "the label of a meaningless text is known from its copy"


def test_the_probabilities_are_those_of_a_calibrated_model(spoiled: tuple[Audited, set[str]]) -> None:
    audited = spoiled[0]
    assert audited.probabilities.sum(axis=1) == pytest.approx(1.0)
    assert audited.probabilities.max(axis=1).mean() == pytest.approx(audited.accuracy, abs=0.05)


def test_joined_sections_have_the_sum_of_their_probabilities(spoiled: tuple[Audited, set[str]]) -> None:
    audited = spoiled[0]
    audited.rows["label"] = audited.rows["category"].replace({"LAW": "NEWS", "SPORT": "NEWS"})
    joined = merged(audited, "label")
    assert joined.names == ("FOOD", "NEWS", "SPACE")
    both = audited.probabilities[:, audited.names.index("LAW")] + audited.probabilities[:, audited.names.index("SPORT")]
    assert joined.probabilities[:, 1] == pytest.approx(both)
    assert [joined.names[number] for number in joined.given] == audited.rows["label"].tolist()


def test_the_joint_keeps_the_share_of_every_given_label(spoiled: tuple[Audited, set[str]]) -> None:
    audited = spoiled[0]
    assert audited.joint.sum() == pytest.approx(1.0)
    assert audited.joint.sum(axis=1) == pytest.approx(np.bincount(audited.given) / len(audited.given))


def test_sections_that_are_labelled_as_one_another_head_the_overlapping_pairs() -> None:
    rows = headlines(60)
    generator = np.random.default_rng(2)
    law = rows["category"] == "LAW"
    rows.loc[law, "category"] = generator.choice(["COURTS", "LAW"], size=int(law.sum()))
    audited = audit(rows, "category", folds=5, seed=3)
    assert audited is not None
    assert label_problems(audited)["overlapping"][0]["classes"] == ["COURTS", "LAW"]


def test_a_section_with_fewer_texts_than_folds_is_left_out_and_counted() -> None:
    rows = pd.concat([headlines(20), headlines(3, seed=9).query("category == 'LAW'").assign(category="BAR", group="bar")])
    audited = audit(rows, "category", folds=5, seed=3)
    assert audited is not None
    assert "BAR" not in audited.names
    assert audited.left_out == {"BAR": 3}


def test_rows_of_one_text_only_are_not_audited() -> None:
    rows = headlines(20).assign(text="the same words", group="one")
    assert audit(rows, "category", folds=5, seed=3) is None


def test_texts_without_any_word_do_not_break_the_audit() -> None:
    rows = headlines(20)
    rows.loc[::7, "text"] = "?!"
    assert audit(rows, "category", folds=5, seed=3) is not None


def test_a_joint_of_perfect_probabilities_is_diagonal() -> None:
    labels = np.repeat(np.arange(3), 30)
    probabilities = np.full((90, 3), 0.05)
    probabilities[np.arange(90), labels] = 0.9
    assert true_joint(labels, probabilities) == pytest.approx(np.eye(3) / 3)
