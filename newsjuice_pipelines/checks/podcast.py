"""Checks of the podcast group. Blocking ones stop what is downstream in the same run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from newsjuice_pipelines.checks.result import CheckOutcome, as_result
from newsjuice_pipelines.podcast.sampling.chunks import CHUNK_TYPES
from newsjuice_pipelines.podcast.training.defects import DEFECTS, switched_on
from newsjuice_pipelines.resources.artifacts import Artifacts

if TYPE_CHECKING:
    import pandas as pd

    from newsjuice_pipelines.podcast.training.split import SplitProof

LOST_TO_FILTERS_LIMIT = 0.5
LEFT_OUT_ON_PURPOSE = ("other_source_type", "before_first_day", "outside_date_window")
OK_SCRIPTS_LIMIT = 0.8
UNIGRAM_SHARE_LIMIT = 0.9
GATE_WORDS = {
    "relative_error": "relative error of the logits",
    "kl_nats": "Kullback-Leibler divergence, nats a token,",
    "top1_agreement": "share of positions with the same best token",
    "effect_kept": "part of the adapter's effect that is kept",
    "effect_not_exceeded": "the same part",
}


# These two judge the rows of one run, so their assets return the results: an old day cannot hide or cause a failure.
CHUNKS_ARE_USABLE = dg.AssetCheckSpec(
    "chunks_are_usable",
    asset="article_chunks",
    blocking=True,
    description="Rows and columns are there, ids are unique, texts not empty, and the filters did not take most of the table.",
)
SCRIPTS_ARE_FIT_FOR_TRAINING = dg.AssetCheckSpec(
    "scripts_are_fit_for_training",
    asset="teacher_scripts",
    blocking=True,
    description="Enough scripts have the status `ok`.",
)

REGISTERED_IF_ASKED = dg.AssetCheckSpec(
    "registered_if_asked",
    asset="merged_model",
    description="The model is in the Vertex AI Model Registry, where `register_with_image` asked for that.",
)


def evaluate_chunks(rows: "pd.DataFrame", counts: Mapping[str, int], share_read: float = 1.0) -> CheckOutcome:
    """A sample that is not empty, with the agreed columns, ids that occur once and texts, and few rows lost to filters.

    Args:
        rows: the sampled chunks of the days of this run; a day without any is fine.
        counts: what became of each row that was read.
        share_read: part of the articles whose rows were read, 0 to 1.
    """
    # Rows of another source or time are left out on purpose: of the others, these could not be used.
    wanted = counts["rows_read"] - sum(counts[name] for name in LEFT_OUT_ON_PURPOSE)
    lost = 1 - counts["eligible"] / max(wanted, 1)
    figures: dict[str, Any] = {"rows": len(rows), "lost_to_filters": lost, "counts": dict(counts), "share_read": share_read}
    wrong = _wrong_columns(rows)
    if wrong:
        return CheckOutcome(False, f"The columns are not as agreed: {'; '.join(wrong)}.", figures)
    figures["distinct_ids"] = distinct = int(rows["chunk_id"].nunique())
    figures["empty_texts"] = empty_texts = int((rows["text"].str.strip() == "").sum())
    if not counts["sampled"]:
        return CheckOutcome(False, "No chunk of the whole table was sampled.", figures)
    if distinct < len(rows):
        return CheckOutcome(False, f"{len(rows) - distinct} chunk ids occur more than once.", figures)
    if empty_texts:
        return CheckOutcome(False, f"{empty_texts} sampled chunks have no text.", figures)
    if lost > LOST_TO_FILTERS_LIMIT:
        part = "" if share_read == 1 else f", in the {share_read:.1%} of the articles that were read"
        sentence = f"The filters took {lost:.0%} of the rows asked for{part}, more than {LOST_TO_FILTERS_LIMIT:.0%}."
        return CheckOutcome(False, sentence, figures)
    sentence = f"{len(rows):,} chunks with distinct ids and texts, of {counts['sampled']:,} in the sample of the whole table."
    return CheckOutcome(True, sentence, figures)


def _wrong_columns(rows: "pd.DataFrame") -> list[str]:
    """What is wrong with the columns of sampled chunks, in words."""
    kinds = {name: str(kind) for name, kind in rows.dtypes.items()}
    missing = [f"{name} is missing" for name in CHUNK_TYPES if name not in kinds]
    unknown = [f"{name} is not known" for name in kinds if name not in CHUNK_TYPES]
    return (
        missing
        + unknown
        + [f"{name} is {kinds[name]}, not {kind}" for name, kind in CHUNK_TYPES.items() if kinds.get(name, kind) != kind]
    )


def evaluate_scripts(statuses: Mapping[str, int]) -> CheckOutcome:
    """Whether enough scripts passed the filters to be taught from; a run without a chunk has nothing to write."""
    rows, ok = sum(statuses.values()), statuses.get("ok", 0)
    figures = {"rows": rows, "ok": ok, "status": dict(statuses)}
    if rows == 0:
        return CheckOutcome(True, "Nothing to write: these days have no chunk in the sample.", figures)
    passed = ok / rows >= OK_SCRIPTS_LIMIT
    sentence = f"{ok:,} of {rows:,} scripts are fit for training ({ok / rows:.0%}; at least {OK_SCRIPTS_LIMIT:.0%} is asked)."
    return CheckOutcome(passed, sentence, figures)


def evaluate_base_model(facts: Mapping[str, Any]) -> CheckOutcome:
    """A model that was pre-trained here must know more than word frequencies."""
    if "unigram_loss_nats" not in facts:
        return CheckOutcome(True, "A published model: its pre-training is not ours to check.")
    held_out, unigram = facts["held_out_loss_nats"], facts["unigram_loss_nats"]
    figures = {"held_out_loss_nats": held_out, "unigram_loss_nats": unigram, "share_of_unigram_loss": held_out / unigram}
    passed = held_out <= UNIGRAM_SHARE_LIMIT * unigram
    sentence = f"Held-out loss {held_out:.2f} nats a token against {unigram:.2f} of a unigram model."
    return CheckOutcome(passed, sentence, figures)


def evaluate_split(rows: Mapping[str, int], proof: "SplitProof") -> CheckOutcome:
    """No article and no near-duplicate on two sides, and rows on every side."""
    figures = {
        **{f"rows_{side}": count for side, count in rows.items()},
        "leaked_rows": proof.leaked_rows,
        "shared_articles": len(proof.articles),
        "shared_near_duplicates": len(proof.pairs),
    }
    empty = [side for side, count in rows.items() if not count]
    if empty:
        return CheckOutcome(False, f"No rows for {', '.join(empty)}.", figures)
    if proof.articles:
        return CheckOutcome(False, f"{len(proof.articles)} articles are on two sides, {proof.articles[0]!r} for one.", figures)
    if proof.pairs:
        first, second, similarity = proof.pairs[0]
        return CheckOutcome(
            False,
            f"{len(proof.pairs)} pairs of near-duplicates are on two sides, {first!r} and {second!r} for one ({similarity:.0%}).",
            figures,
        )
    return CheckOutcome(True, "No article and no near-duplicate is on two sides of the split.", figures)


def evaluate_endings(rows: int, without_end: Sequence[str]) -> CheckOutcome:
    """Whether each training text ends with the end token, without which the student never learns to stop."""
    figures = {"rows": rows, "rows_without_end_token": len(without_end)}
    if not rows:
        return CheckOutcome(False, "There are no rows.", figures)
    if without_end:
        return CheckOutcome(
            False,
            f"{len(without_end):,} of {rows:,} rows do not end with the end token, {without_end[0]!r} for one: the base model's "
            "chat template must close the assistant's turn with it.",
            figures,
        )
    return CheckOutcome(True, f"All {rows:,} rows end with the end token.", figures)


def evaluate_training(defects: Sequence[str], facts: Mapping[str, Any]) -> CheckOutcome:
    """Whether the adapter was trained on whole rows with their ends, and with no defect of the first experiment."""
    figures = {name: facts[name] for name in ("rows_without_end_token", "rows_cut", "rows_without_answer")}
    if defects:
        named = ", ".join(f"{name} ({DEFECTS[name].what})" for name in defects)
        return CheckOutcome(False, f"Trained with defects switched on, for comparison only: {named}.", figures)
    spoiled = [f"{name.replace('_', ' ')}: {count:,}" for name, count in figures.items() if count]
    if spoiled:
        return CheckOutcome(False, f"Some rows were spoiled ({', '.join(spoiled)}): materialise student_dataset again.", figures)
    return CheckOutcome(True, "Trained on whole rows, each with its end token, and no defect is switched on.", figures)


def evaluate_merge(facts: Mapping[str, Any]) -> CheckOutcome:
    """Whether the merged weights still do what base and adapter did, as far as their number format allows."""
    gate = facts["gate"]
    if gate["passed"] is None:
        return CheckOutcome(False, "The merge was not measured: no held-out prompt.")
    sentences = [
        f"{GATE_WORDS.get(name, name)} {'not measured' if measure['value'] is None else format(measure['value'], '.3g')} "
        f"({measure['bound']} {measure['limit']:.3g})"
        for name, measure in gate["measures"].items()
        if gate["passed"] or not measure["passed"]
    ]
    figures = {"prompts": gate["prompts"], "positions": gate["positions"], **gate["measures"]}
    listed = "; ".join(sentences)
    if not gate["passed"]:
        advice = "merge with another dtype and with into_4bit off, or train again if the adapter has no effect"
        return CheckOutcome(False, f"The merged model does not do what its adapter does: {listed}. Next: {advice}.", figures)
    return CheckOutcome(True, f"The merged model does what its adapter does: {listed}.", figures)


def evaluate_quantised(facts: Mapping[str, Any]) -> CheckOutcome:
    """Whether the quantised form writes what the model writes. One that was not measured is no default, so nothing is wrong."""
    figures = {"precision": facts["precision"], "measures": facts["measures"]}
    if facts["passed"] is None:
        return CheckOutcome(True, f"Not measured, so it is not the default engine: {facts['why']}.", figures)
    use = "the default on a CPU" if facts["passed"] else "not used unless asked for"
    return CheckOutcome(facts["passed"], f"{facts['why'].rstrip('.')}; it is {use}.", figures)


def evaluate_answers(reasons: Mapping[str, int]) -> CheckOutcome:
    """Whether the engine answered every row."""
    errors, rows = reasons.get("error", 0), sum(reasons.values())
    sentence = f"All {rows:,} rows were answered." if not errors else f"{errors:,} of {rows:,} rows ended in an error."
    return CheckOutcome(rows > 0 and errors == 0, sentence, {"finish_reasons": dict(reasons)})


def evaluate_engines(student: Mapping[str, Any], base: Mapping[str, Any]) -> CheckOutcome:
    """Whether student and base wrote their scripts on one engine in one precision, so that only training tells them apart."""
    same = student == base
    shown = [f"{one['engine']}{' in ' + one['precision'] if one['precision'] else ''}" for one in (student, base)]
    sentence = f"Both were written by {shown[0]}." if same else f"The student was written by {shown[0]}, the base by {shown[1]}."
    return CheckOutcome(same, sentence, {"student": dict(student), "base": dict(base)})


def evaluate_verdict(facts: Mapping[str, Any]) -> CheckOutcome:
    """Red on "do not adopt"; the run itself goes on."""
    open_criteria = [
        criterion["name"]
        for criterion in facts["criteria"]
        if criterion["status"] == "fail" or (criterion["status"] != "pass" and criterion.get("required") != "if measured")
    ]
    sentence = f"Decision: {facts['decision']}."
    if open_criteria:
        sentence += f" Not passed: {', '.join(open_criteria)}."
    return CheckOutcome(facts["decision"] == "adopt", sentence)


@dg.asset_check(asset="base_model", blocking=True)
def base_model_beats_word_frequencies(artifacts: Artifacts) -> dg.AssetCheckResult:
    """A model pre-trained here has a held-out loss well below a unigram model's."""
    return as_result(evaluate_base_model(artifacts.store().open("base_model").facts))


@dg.asset_check(asset="student_dataset", blocking=True)
def nothing_on_two_sides(artifacts: Artifacts) -> dg.AssetCheckResult:
    """Train, validation and test share no article and no near-duplicate, by exact comparison of all pairs."""
    from newsjuice_pipelines.podcast.training.dataset import read_student_dataset
    from newsjuice_pipelines.podcast.training.split import shared_between_sides

    artifact = artifacts.store().open("student_dataset")
    splits = read_student_dataset(artifact.path)
    proof = shared_between_sides(splits, artifact.recipe["config"]["near_duplicate_similarity"])
    return as_result(evaluate_split({name: len(frame) for name, frame in splits.items()}, proof))


@dg.asset_check(asset="student_dataset", blocking=True, additional_deps=["base_model"])
def every_row_ends_with_the_end_token(artifacts: Artifacts) -> dg.AssetCheckResult:
    """What is trained on ends with the end-of-turn token in every row, as the base model's tokenizer writes it."""
    from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
    from newsjuice_pipelines.podcast.training.dataset import read_student_dataset, rows_without_end

    store = artifacts.store()
    tokenizer = load_tokenizer(store.open("base_model").path)
    splits = read_student_dataset(store.open("student_dataset").path).values()
    without = [chunk_id for frame in splits for chunk_id in rows_without_end(frame, tokenizer)]
    return as_result(evaluate_endings(sum(map(len, splits)), without))


@dg.asset_check(asset="lora_adapter", blocking=True, additional_deps=["student_dataset"])
def trained_without_defects(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The adapter saw whole rows with their end tokens, and no defect of the first experiment was switched on."""
    store = artifacts.store()
    adapter, rows = store.open("lora_adapter"), store.open("student_dataset")
    return as_result(evaluate_training(switched_on(rows.recipe["config"], adapter.recipe["config"]), adapter.facts))


@dg.asset_check(asset="merged_model", blocking=True)
def merge_gate(artifacts: Artifacts) -> dg.AssetCheckResult:
    """On held-out prompts the merged model does what base and adapter did, as far as its number format allows."""
    return as_result(evaluate_merge(artifacts.store().open("merged_model").facts))


@dg.asset_check(asset="quantised_model")
def quantised_gate(artifacts: Artifacts) -> dg.AssetCheckResult:
    """On held-out prompts the quantised model writes what the merged model writes, or something about as probable."""
    return as_result(evaluate_quantised(artifacts.store().open("quantised_model").facts), warn_only=True)


@dg.asset_check(asset="quantised_base")
def quantised_base_gate(artifacts: Artifacts) -> dg.AssetCheckResult:
    """On held-out prompts the quantised base writes what the base model writes, or something about as probable."""
    return as_result(evaluate_quantised(artifacts.store().open("quantised_base").facts), warn_only=True)


@dg.asset_check(asset="student_scripts")
def student_answers_every_row(artifacts: Artifacts) -> dg.AssetCheckResult:
    """No row ended in an engine error."""
    return as_result(evaluate_answers(artifacts.store().open("student_scripts").facts["by_finish_reason"]), warn_only=True)


@dg.asset_check(asset="base_scripts")
def base_answers_every_row(artifacts: Artifacts) -> dg.AssetCheckResult:
    """No row ended in an engine error."""
    return as_result(evaluate_answers(artifacts.store().open("base_scripts").facts["by_finish_reason"]), warn_only=True)


@dg.asset_check(asset="script_quality_report", additional_deps=["student_scripts", "base_scripts"])
def student_and_base_ran_alike(artifacts: Artifacts) -> dg.AssetCheckResult:
    """Student and base wrote their scripts on one engine, in one precision."""
    store = artifacts.store()

    def ran(key: str, quantised_key: str) -> dict[str, Any]:
        recipe = store.open(key, report.recipe["inputs"][key]).recipe
        engine = recipe["config"]["engine"]
        quantised = store.open(quantised_key, recipe["inputs"][quantised_key]) if engine == "openvino" else None
        return {"engine": engine, "precision": quantised.facts["precision"] if quantised else None}

    report = store.open("script_quality_report")
    outcome = evaluate_engines(ran("student_scripts", "quantised_model"), ran("base_scripts", "quantised_base"))
    return as_result(outcome, warn_only=True)


@dg.asset_check(asset="podcast_decision")
def student_is_worth_adopting(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The verdict of the decision: a warning when it is "do not adopt"."""
    return as_result(evaluate_verdict(artifacts.store().open("podcast_decision").facts), warn_only=True)


PODCAST_CHECKS = [
    base_model_beats_word_frequencies,
    nothing_on_two_sides,
    every_row_ends_with_the_end_token,
    trained_without_defects,
    merge_gate,
    quantised_gate,
    quantised_base_gate,
    student_answers_every_row,
    base_answers_every_row,
    student_and_base_ran_alike,
    student_is_worth_adopting,
]
