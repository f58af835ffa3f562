"""The checks: each passes on good figures, fails for one reason on bad ones, and a blocking one stops what depends on it."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pytest

from newsjuice_pipelines.assets import ALL_ASSETS
from newsjuice_pipelines.checks import classification, podcast
from newsjuice_pipelines.checks.classification import classifiers_beat_guessing, foreign_labels_are_known
from newsjuice_pipelines.classification.corpus.huffpost import load_huffpost
from newsjuice_pipelines.classification.judging import decision as classifier_decision
from newsjuice_pipelines.commands.run import RunFailed, Stage, _materialize
from newsjuice_pipelines.definitions import build_defs, build_resources
from newsjuice_pipelines.podcast.judging import decision as podcast_decision
from newsjuice_pipelines.podcast.sampling.chunks import ChunkSample, ChunkSampling, sample_chunks
from newsjuice_pipelines.podcast.training.split import SplitProof
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.settings import load_settings

DAY = datetime.now(UTC).date() - timedelta(days=2)
TOO_SHORT = "A caption."
FRENCH = (
    "Le conseil municipal a approuvé mardi un nouveau plan pour réparer le pont sur la rivière, fermé depuis la tempête de mars. "
    "Les travaux dureront au moins un an, selon la maire, qui a demandé de la patience aux habitants du quartier. Les "
    "commerçants craignent de perdre des clients pendant la fermeture et réclament une aide de la région, qui doit encore voter."
)


# -- figures that other parts of the project do not make up on the way --------------------------------------------------

WHOLE_ROWS = {"rows_without_end_token": 0, "rows_cut": 0, "rows_without_answer": 0}
INT8 = {"engine": "openvino", "precision": "int8"}
SIDES = {"train": 8, "validation": 1, "test": 1}


def merge_facts(kept: float) -> dict[str, Any]:
    """Facts of a merge that kept this part of the adapter's effect."""
    measure = {"value": kept, "reference": 1.0, "limit": 0.9, "bound": "at least", "passed": kept >= 0.9, "by_prompt": None}
    return {"gate": {"passed": kept >= 0.9, "prompts": 4, "positions": 99, "measures": {"effect_kept": measure}, "failed": []}}


def compared(labelled: int, mapped: int, unmapped: dict[str, int]) -> dict[str, Any]:
    """What external predictions say about the labels of another source."""
    return {
        "counts": {"labelled": labelled, "mapped": mapped},
        "mapped_share": mapped / labelled if labelled else None,
        "unmapped_labels": unmapped,
        "compare_raw_strings": False,
    }


def certified(threshold: float | None, interval: list[float] | None) -> dict[str, Any]:
    promise = {"threshold": threshold, "target_precision": 0.9, "precision_interval": interval}
    return {
        "certificates": {"filed": promise, "parent": {"threshold": None, "target_precision": 0.9, "precision_interval": None}}
    }


GOOD = {
    "scripts": podcast.evaluate_scripts({"ok": 9, "rejected": 1}),
    "a day without chunks": podcast.evaluate_scripts({}),
    "tiny base": podcast.evaluate_base_model({"held_out_loss_nats": 5.0, "unigram_loss_nats": 6.5}),
    "published base": podcast.evaluate_base_model({"name": "Qwen/Qwen3-0.6B"}),
    "split": podcast.evaluate_split(SIDES, SplitProof([], [], 0)),
    "endings": podcast.evaluate_endings(10, []),
    "training": podcast.evaluate_training([], WHOLE_ROWS),
    "merge": podcast.evaluate_merge(merge_facts(0.99)),
    "answers": podcast.evaluate_answers({"eos": 9, "length": 1}),
    "quantised": podcast.evaluate_quantised({"passed": True, "why": "all is well", "precision": "int8", "measures": {}}),
    "quantised, not measured": podcast.evaluate_quantised({"passed": None, "why": "no x", "precision": None, "measures": {}}),
    "one engine": podcast.evaluate_engines(INT8, INT8),
    "sections": classification.evaluate_sections(0, 100, {}),
    "whole split": classification.evaluate_split({"sides": [], "counts": [], "schema": []}, {"train": 8, "test": 2}),
    "chance": classification.evaluate_against_chance({"linear": {"accuracy_interval": [0.2, 0.4]}}, 29),
    "certificate": classification.evaluate_certificates({"linear": certified(0.6, [0.88, 0.95])}),
    "no certificate": classification.evaluate_certificates({"linear": certified(None, None)}),
    "labels": classification.evaluate_crosswalk({"linear": compared(100, 96, {"Obituaries": 4})}),
    "export": classification.evaluate_export({"minilm": {"passed": True, "reason": "lost 0.1 points"}}),
    "nothing to export": classification.evaluate_export({"linear": {"passed": None, "reason": "linear"}}),
}
BAD = {
    "few scripts": (podcast.evaluate_scripts({"ok": 7, "blocked": 3}), "7 of 10 scripts"),
    "weak base": (
        podcast.evaluate_base_model({"held_out_loss_nats": 6.4, "unigram_loss_nats": 6.5}),
        "6.40 nats a token against 6.50",
    ),
    "shared article": (podcast.evaluate_split(SIDES, SplitProof(["a"], [], 1)), "'a' for one"),
    "shared text": (podcast.evaluate_split(SIDES, SplitProof([], [("a:0", "b:0", 0.9)], 1)), "'a:0' and 'b:0' for one (90%)"),
    "empty side": (podcast.evaluate_split({**SIDES, "validation": 0}, SplitProof([], [], 0)), "No rows for validation"),
    "endless rows": (podcast.evaluate_endings(10, ["a:0", "b:0"]), "2 of 10 rows do not end with the end token, 'a:0'"),
    "no rows to end": (podcast.evaluate_endings(0, []), "There are no rows"),
    "defects": (podcast.evaluate_training(["D2"], WHOLE_ROWS), "D2 (no end token in the labels)"),
    "cut rows": (podcast.evaluate_training([], {**WHOLE_ROWS, "rows_cut": 3}), "rows cut: 3"),
    "lossy merge": (
        podcast.evaluate_merge(merge_facts(0.04)),
        "is kept 0.04 (at least 0.9). Next: merge with",
    ),
    "unmeasured merge": (podcast.evaluate_merge({"gate": {"passed": None}}), "not measured"),
    "lossy quantising": (
        podcast.evaluate_quantised({"passed": False, "why": "0.9 nats lost.", "precision": "int4", "measures": {}}),
        "0.9 nats lost; it is not used unless asked for",
    ),
    "two engines": (
        podcast.evaluate_engines(INT8, {"engine": "transformers", "precision": None}),
        "The student was written by openvino in int8, the base by transformers.",
    ),
    "engine errors": (podcast.evaluate_answers({"eos": 9, "error": 1}), "1 of 10 rows ended in an error"),
    "unknown sections": (classification.evaluate_sections(10, 90, {"GARDENING": 10}), "GARDENING"),
    "leak": (
        classification.evaluate_split({"sides": ["3 texts are in more than one part."], "counts": []}, {"train": 8}),
        "3 texts are in more",
    ),
    "broken certificate": (
        classification.evaluate_certificates({"linear": certified(0.6, [0.7, 0.85]), "minilm": certified(0.5, [0.9, 1])}),
        "than certified: linear, filed.",
    ),
    "no certificates": (classification.evaluate_certificates({}), "materialise classifier_eval_report"),
    "nothing exported": (classification.evaluate_export({}), "materialise exported_classifier"),
    "lossy export": (
        classification.evaluate_export({"minilm": {"passed": False, "reason": "lost 2 points"}}),
        "minilm: lost 2 points",
    ),
    "guessing": (classification.evaluate_against_chance({"linear": {"accuracy_interval": [0.01, 0.1]}}, 29), "linear"),
    "nothing evaluated": (classification.evaluate_against_chance({}, 29), "materialise classifier_eval_report"),
    "unknown labels": (classification.evaluate_crosswalk({"linear": compared(100, 50, {"Obituaries": 50})}), "Obituaries"),
    "no labels": (classification.evaluate_crosswalk({"linear": compared(0, 0, {})}), "no labels"),
    "no common label": (classification.evaluate_crosswalk({"linear": compared(9, 0, {"X": 9})}), "vocabularies do not meet"),
    "nothing predicted": (classification.evaluate_crosswalk({}), "materialise external_predictions"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_figures_pass(name: str) -> None:
    assert GOOD[name].passed, GOOD[name].sentence


@pytest.mark.parametrize("name", BAD)
def test_bad_figures_fail_and_the_sentence_says_why(name: str) -> None:
    outcome, reason = BAD[name]

    assert not outcome.passed
    assert reason in outcome.sentence


# -- chunks, sampled from a real table ----------------------------------------------------------------------------------


@pytest.fixture
def add_chunks(connection: psycopg.Connection) -> Callable[..., None]:
    """Adds one article a text, fetched on a day."""

    def add(texts: Sequence[str], day: date = DAY, source_type: str = "campus") -> None:
        known = connection.execute("SELECT count(*) FROM chunks_vector").fetchone()
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO chunks_vector (article_id, chunk, chunk_index, source_type, fetched_at) VALUES (%s, %s, 0, %s, %s)",
                [
                    (f"a{number}", text, source_type, datetime.combine(day, datetime.min.time()))
                    for number, text in enumerate(texts, start=known[0] if known else 0)
                ],
            )
        connection.commit()

    return add


def articles(count: int, first: int = 0) -> list[str]:
    """Texts that have little in common."""
    sentence = "Council {0} met on day {0} to talk about bridge {0} over river {0} near town {0}. "
    return [f"Story {number} begins here. {sentence.format(number) * 8}" for number in range(first, first + count)]


def without_sentences(number: int) -> str:
    return f"story{number} bridge{number} " * 45


def sampled(connection: psycopg.Connection, day: date = DAY, **sampling: Any) -> ChunkSample:
    return sample_chunks(connection, "chunks_vector", ChunkSampling(**sampling), day, day, since=DAY - timedelta(days=30))


def test_a_sample_of_a_sound_table_passes(connection: psycopg.Connection, add_chunks: Callable[..., None]) -> None:
    add_chunks([*articles(6), TOO_SHORT])
    sample = sampled(connection)

    outcome = podcast.evaluate_chunks(sample.rows, sample.counts)

    assert outcome.passed, outcome.sentence
    assert outcome.figures["rows"] == outcome.figures["distinct_ids"] == 6


def test_a_day_without_chunks_passes_when_other_days_have_some(
    connection: psycopg.Connection, add_chunks: Callable[..., None]
) -> None:
    add_chunks(articles(3))
    sample = sampled(connection, DAY - timedelta(days=1))

    outcome = podcast.evaluate_chunks(sample.rows, sample.counts)

    assert outcome.passed
    assert outcome.sentence.startswith("0 chunks")


def test_a_table_that_gives_no_sample_fails(connection: psycopg.Connection, add_chunks: Callable[..., None]) -> None:
    add_chunks(articles(1))
    sample = sampled(connection)

    outcome = podcast.evaluate_chunks(sample.rows[:0], {**sample.counts, "sampled": 0})

    assert not outcome.passed
    assert "No chunk of the whole table" in outcome.sentence


def test_filters_that_take_most_of_the_table_fail(connection: psycopg.Connection, add_chunks: Callable[..., None]) -> None:
    add_chunks([*articles(4), *[TOO_SHORT] * 6])
    sample = sampled(connection)

    outcome = podcast.evaluate_chunks(sample.rows, sample.counts)

    assert not outcome.passed
    assert "took 60% of the rows asked for" in outcome.sentence


def test_rows_of_other_sources_and_earlier_days_are_not_lost(
    connection: psycopg.Connection, add_chunks: Callable[..., None]
) -> None:
    add_chunks(articles(2))
    add_chunks(articles(9, first=2), source_type="wire")
    add_chunks(articles(9, first=11), day=DAY - timedelta(days=900))
    sample = sampled(connection, source_types=("campus",))

    outcome = podcast.evaluate_chunks(sample.rows, sample.counts)

    assert outcome.passed, outcome.sentence
    assert sample.counts["eligible"] == 2, "nearly all rows are left out"


def test_what_nobody_asked_for_does_not_hide_what_was_lost(
    connection: psycopg.Connection, add_chunks: Callable[..., None]
) -> None:
    add_chunks([*articles(4), *[TOO_SHORT] * 6])
    add_chunks(articles(90), source_type="wire")
    sample = sampled(connection, source_types=("campus",))

    outcome = podcast.evaluate_chunks(sample.rows, sample.counts)

    assert not outcome.passed
    assert outcome.figures["lost_to_filters"] == pytest.approx(0.6)


def test_rows_outside_of_the_date_window_and_in_another_language_are_not_lost(
    connection: psycopg.Connection, add_chunks: Callable[..., None]
) -> None:
    add_chunks([*articles(2), *[f"{FRENCH} Numéro {number}." for number in range(5)]])
    add_chunks(articles(20), day=DAY - timedelta(days=20))
    sample = sampled(connection, published_from=str(DAY))

    outcome = podcast.evaluate_chunks(sample.rows, sample.counts)

    assert outcome.passed, outcome.sentence
    assert (sample.counts["outside_date_window"], sample.counts["other_language"]) == (20, 5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.drop(columns="section"), "section is missing"),
        (lambda rows: rows.assign(embedding=0), "embedding is not known"),
        (lambda rows: rows.astype({"fetched_at": "str"}), "fetched_at is str, not datetime64"),
    ],
)
def test_chunks_with_other_columns_than_agreed_fail(
    connection: psycopg.Connection,
    add_chunks: Callable[..., None],
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
) -> None:
    add_chunks(articles(2))
    sample = sampled(connection)

    outcome = podcast.evaluate_chunks(spoil(sample.rows), sample.counts)

    assert not outcome.passed
    assert message in outcome.sentence


def test_repeated_ids_fail(connection: psycopg.Connection, add_chunks: Callable[..., None]) -> None:
    add_chunks(articles(2))
    sample = sampled(connection)

    outcome = podcast.evaluate_chunks(pd.concat([sample.rows, sample.rows[:1]]), sample.counts)

    assert not outcome.passed
    assert "1 chunk ids occur more than once" in outcome.sentence


def test_chunks_without_a_text_fail(connection: psycopg.Connection, add_chunks: Callable[..., None]) -> None:
    add_chunks(articles(2))
    sample = sampled(connection)

    outcome = podcast.evaluate_chunks(sample.rows.assign(text=" "), sample.counts)

    assert not outcome.passed
    assert "2 sampled chunks have no text" in outcome.sentence


# -- headlines, read from a file ----------------------------------------------------------------------------------------


def headline_counts(folder: Path, lines: Sequence[str]) -> dict[str, int]:
    path = folder / "headlines.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dict(load_huffpost(path).counts)


def headline(text: str, category: str = "WEATHER") -> str:
    return json.dumps({"headline": text, "category": category, "short_description": "", "link": "", "authors": "", "date": ""})


def test_repeated_headlines_are_not_held_against_the_file(tmp_path: Path) -> None:
    repeated = [*[headline("Rain")] * 5, headline("Rain", "SCIENCE")]

    outcome = classification.evaluate_headlines(headline_counts(tmp_path, [*repeated, headline("Sun")]))

    assert outcome.passed, outcome.sentence
    assert "2 of 7 lines are kept; 0.0% could not be used" in outcome.sentence


def test_broken_lines_are_held_against_the_file(tmp_path: Path) -> None:
    lines = [headline("Rain"), headline("Rain"), *[headline(f"Sun {number}") for number in range(7)], '{"headline": "cut']

    outcome = classification.evaluate_headlines(headline_counts(tmp_path, lines))

    assert not outcome.passed
    assert "8 of 10 lines are kept; 10.0% could not be used" in outcome.sentence


# -- verdicts, decided by the two decisions -----------------------------------------------------------------------------


def podcast_verdict(passes: float) -> dict[str, Any]:
    criterion = {"name": "format", "report": "quality", "value": "passes", "at_least": 0.5, "required": True}
    return podcast_decision.decide({}, {"passes": passes}, {"version": "test", "criteria": [criterion]})


def classifier_verdict(speed: float) -> dict[str, Any]:
    criterion = classifier_decision.Criterion("speed", "texts_per_s", at_least=10, at_most=None, judged_by="value")
    evaluation = {"texts_per_s": speed, "per_class": [{"f1": 0.5}]}
    return classifier_decision.decide(
        {"best": "linear"}, {"linear": evaluation}, classifier_decision.Thresholds("test", (criterion,))
    )


@pytest.mark.parametrize("facts", [podcast_verdict(0.9), classifier_verdict(20)], ids=["student", "classifier"])
def test_adopting_passes(facts: dict[str, Any]) -> None:
    outcome = podcast.evaluate_verdict(facts)

    assert outcome.passed
    assert outcome.sentence == "Decision: adopt."


@pytest.mark.parametrize(
    ("facts", "criterion"), [(podcast_verdict(0.1), "format"), (classifier_verdict(1), "speed")], ids=["student", "classifier"]
)
def test_not_adopting_fails_and_names_the_criterion(facts: dict[str, Any], criterion: str) -> None:
    outcome = podcast.evaluate_verdict(facts)

    assert not outcome.passed
    assert outcome.sentence == f"Decision: do not adopt. Not passed: {criterion}."


# -- which evaluations are judged ---------------------------------------------------------------------------------------


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(root=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache"))


def publish(store: ArtifactStore, key: str, facts: dict[str, Any], *inputs: str, turn: int = 1) -> None:
    versions = {name: store.current_version(name) for name in inputs}
    store.publish(key, {"inputs": versions, "turn": turn}, lambda draft: facts)


def evaluate(store: ArtifactStore, model: str, lower: float, mapped: float) -> None:
    """Checkpoint, evaluation and external predictions of a model on the split in force."""
    checkpoint, report = f"classifier_checkpoint/{model}", f"classifier_eval_report/{model}"
    publish(store, checkpoint, {}, "balanced_split")
    publish(store, report, {"accuracy_interval": [lower, 1.0]}, checkpoint, "balanced_split")
    publish(store, f"external_predictions/{model}", compared(100, round(100 * mapped), {}), checkpoint, report)


def test_evaluations_of_an_earlier_split_are_not_judged(artifacts: Artifacts) -> None:
    store = artifacts.store()
    publish(store, "balanced_split", {"class_count": 5})
    evaluate(store, "minilm", lower=0.1, mapped=0.1)
    publish(store, "balanced_split", {"class_count": 5}, turn=2)
    evaluate(store, "linear", lower=0.4, mapped=1.0)

    guessing, labels = classifiers_beat_guessing(artifacts), foreign_labels_are_known(artifacts)

    assert guessing.passed, guessing.description
    assert "linear" in guessing.description
    assert "minilm" not in guessing.description
    assert labels.passed, labels.description


def test_predictions_of_an_earlier_checkpoint_are_not_judged(artifacts: Artifacts) -> None:
    store = artifacts.store()
    publish(store, "balanced_split", {"class_count": 5})
    evaluate(store, "minilm", lower=0.4, mapped=0.1)
    evaluate(store, "linear", lower=0.4, mapped=1.0)
    publish(store, "classifier_checkpoint/minilm", {}, "balanced_split", turn=2)

    result = foreign_labels_are_known(artifacts)

    assert result.passed, result.description


# -- blocking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings that point at the test's database and folder."""
    monkeypatch.setenv("NEWSJUICE_HOME", str(tmp_path))
    monkeypatch.setenv("NEWSJUICE_DATABASE_URL", empty_database)
    monkeypatch.setenv("NEWSJUICE_LEDGER_URL", empty_database)
    monkeypatch.setenv("NEWSJUICE_TEACHER", "extractive")
    return tmp_path


def materialize(*names: str, days: tuple[date, date] = (DAY, DAY)) -> dg.ExecuteInProcessResult:
    tags = {"dagster/asset_partition_range_start": str(days[0]), "dagster/asset_partition_range_end": str(days[1])}
    return dg.materialize(
        ALL_ASSETS,
        selection=dg.AssetSelection.assets(*names),
        resources=build_resources(load_settings()),
        instance=dg.DagsterInstance.ephemeral(),
        tags=tags,
        raise_on_error=False,
    )


def started(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.step_key for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_START}


def findings(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, str]]:
    return {check.check_name: (check.passed, check.description) for check in result.get_asset_check_evaluations()}


def test_a_day_without_chunks_succeeds_from_sampling_to_scripts(home: Path, add_chunks: Callable[..., None]) -> None:
    add_chunks(articles(3), day=DAY)
    empty = DAY - timedelta(days=1)

    result = materialize("article_chunks", "teacher_scripts", days=(empty, empty))

    assert result.success
    assert findings(result)["scripts_are_fit_for_training"] == (
        True,
        "Nothing to write: these days have no chunk in the sample.",
    )


def test_an_empty_table_stops_the_run_and_says_how_to_fill_it(home: Path, connection: psycopg.Connection) -> None:
    result = materialize("article_chunks", "teacher_scripts")

    assert not result.success
    assert started(result) == {"article_chunks"}
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "newsjuice run --data DIR" in failure.step_failure_data.user_failure_data.description


def test_unusable_chunks_stop_the_teacher(home: Path, add_chunks: Callable[..., None]) -> None:
    add_chunks([*articles(2), *[TOO_SHORT] * 8])

    result = materialize("article_chunks", "teacher_scripts")

    assert not result.success
    assert started(result) == {"article_chunks"}
    assert not findings(result)["chunks_are_usable"][0]


def test_scripts_that_all_failed_stop_the_data_set(home: Path, add_chunks: Callable[..., None]) -> None:
    add_chunks([without_sentences(number) for number in range(4)])

    result = materialize("article_chunks", "teacher_scripts", "student_dataset")

    assert not result.success
    assert started(result) == {"article_chunks", "teacher_scripts"}
    assert findings(result)["scripts_are_fit_for_training"][1].startswith("0 of 4 scripts")


def test_good_days_before_do_not_hide_a_bad_night(home: Path, add_chunks: Callable[..., None]) -> None:
    before = DAY - timedelta(days=1)
    add_chunks(articles(9), day=before)
    add_chunks([without_sentences(0)], day=DAY)
    assert materialize("article_chunks", "teacher_scripts", days=(before, before)).success

    result = materialize("article_chunks", "teacher_scripts")

    assert not result.success
    assert findings(result)["scripts_are_fit_for_training"][1].startswith("0 of 1 scripts")


def test_a_damaged_day_does_not_stop_the_other_days(home: Path, add_chunks: Callable[..., None]) -> None:
    before = DAY - timedelta(days=1)
    add_chunks(articles(3), day=before)
    add_chunks(articles(3, first=3), day=DAY)
    assert materialize("article_chunks", days=(before, before)).success
    damaged = next((home / "artifacts" / "article_chunks" / str(before)).rglob("chunks.parquet"))
    damaged.write_bytes(b"damaged")

    assert materialize("article_chunks", "teacher_scripts").success


def test_the_command_names_the_check_and_its_finding(home: Path, add_chunks: Callable[..., None]) -> None:
    add_chunks([*articles(2), *[TOO_SHORT] * 8])
    tags = {"dagster/asset_partition_range_start": str(DAY), "dagster/asset_partition_range_end": str(DAY)}
    stage = Stage("days", ("article_chunks", "teacher_scripts"), tags=tags)

    with pytest.raises(RunFailed) as failed, dg.DagsterInstance.ephemeral() as instance:
        _materialize(build_defs(load_settings()), instance, stage, {})

    assert str(failed.value).splitlines()[0] == (
        "The check failed and what depends on it was not run: "
        "chunks_are_usable of article_chunks: The filters took 80% of the rows asked for, more than 50%."
    )
