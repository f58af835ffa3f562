"""The checks' pure functions: each passes on good figures and fails for one reason on bad ones."""

import pytest

from newsjuice_pipelines.checks import classification, podcast

COUNTS = {"rows_read": 100, "eligible": 80}
CRITERIA = {"decision": "adopt", "criteria": [{"name": "speed", "status": "pass"}]}

GOOD = {
    "chunks": podcast.evaluate_chunks(["a", "b"], 0, COUNTS),
    "scripts": podcast.evaluate_scripts({"ok": 9, "rejected": 1}),
    "tiny base": podcast.evaluate_base_model({"held_out_loss_nats": 5.0, "unigram_loss_nats": 6.5}),
    "published base": podcast.evaluate_base_model({"name": "Qwen/Qwen3-0.6B"}),
    "split": podcast.evaluate_split({"train": {"a", "b"}, "validation": {"c"}, "test": {"d"}}),
    "merge": podcast.evaluate_merge({"merge": {"effect_kept": 0.99}}),
    "answers": podcast.evaluate_answers({"eos": 9, "length": 1}),
    "verdict": podcast.evaluate_verdict(CRITERIA),
    "headlines with duplicates": classification.evaluate_headlines({"lines": 100, "kept": 70, "duplicate_text": 30}),
    "sections": classification.evaluate_sections(0, 100, {}),
    "leaks": classification.evaluate_leaks(0, 0, {"train": 8, "test": 2}),
    "chance": classification.evaluate_against_chance({"linear": {"accuracy_interval": [0.2, 0.4]}}, 29),
    "labels": classification.evaluate_labels({"linear": {"mapped_share": 0.96, "unmapped_labels": {"Obituaries": 1}}}),
}
BAD = {
    "no chunk": (podcast.evaluate_chunks([], 0, None), "No chunk"),
    "repeated id": (podcast.evaluate_chunks(["a", "a"], 0, COUNTS), "1 chunk ids occur more than once"),
    "empty text": (podcast.evaluate_chunks(["a"], 1, COUNTS), "1 sampled chunks have no text"),
    "lost to filters": (podcast.evaluate_chunks(["a"], 0, {"rows_read": 100, "eligible": 40}), "took 60% of the table"),
    "few scripts": (podcast.evaluate_scripts({"ok": 7, "blocked": 3}), "7 of 10 scripts"),
    "no script": (podcast.evaluate_scripts({}), "no script at all"),
    "weak base": (
        podcast.evaluate_base_model({"held_out_loss_nats": 6.4, "unigram_loss_nats": 6.5}),
        "6.40 nats a token against 6.50",
    ),
    "shared article": (podcast.evaluate_split({"train": {"a"}, "validation": {"b"}, "test": {"a"}}), "'a' for one"),
    "empty side": (podcast.evaluate_split({"train": {"a"}, "validation": set(), "test": {"b"}}), "No rows for validation"),
    "lossy merge": (podcast.evaluate_merge({"merge": {"effect_kept": 0.04}}), "4.0% of the adapter's effect"),
    "unmeasured merge": (podcast.evaluate_merge({"merge": {"effect_kept": None}}), "not measured"),
    "engine errors": (podcast.evaluate_answers({"eos": 9, "error": 1}), "1 of 10 rows ended in an error"),
    "verdict": (
        podcast.evaluate_verdict({"decision": "do not adopt", "criteria": [{"name": "speed", "status": "fail"}]}),
        "Not passed: speed",
    ),
    "broken lines": (classification.evaluate_headlines({"lines": 100, "kept": 90}), "10.0% could not be used"),
    "unknown sections": (classification.evaluate_sections(10, 90, {"GARDENING": 10}), "GARDENING"),
    "leak": (classification.evaluate_leaks(3, 1, {"train": 8, "test": 2}), "3 texts and 1 groups"),
    "empty part": (classification.evaluate_leaks(0, 0, {"train": 8, "test": 0}), "No rows in test"),
    "guessing": (classification.evaluate_against_chance({"linear": {"accuracy_interval": [0.01, 0.1]}}, 29), "linear"),
    "unknown labels": (
        classification.evaluate_labels({"linear": {"mapped_share": 0.5, "unmapped_labels": {"Obituaries": 9}}}),
        "Obituaries",
    ),
    "no labels": (classification.evaluate_labels({"linear": {"mapped_share": None, "unmapped_labels": {}}}), "no labels"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_figures_pass(name: str) -> None:
    assert GOOD[name].passed, GOOD[name].sentence


@pytest.mark.parametrize("name", BAD)
def test_bad_figures_fail_and_the_sentence_says_why(name: str) -> None:
    outcome, reason = BAD[name]

    assert not outcome.passed
    assert reason in outcome.sentence
