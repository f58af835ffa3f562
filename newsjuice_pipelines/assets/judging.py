"""The podcast group, third part: scripts of student and base, the reports on them, the decision, and what goes into service."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from newsjuice_pipelines.assets.describe import materialized
from newsjuice_pipelines.assets.forms import GenerationForm, LatencyForm, PromotionForm, QualityForm, ThresholdsForm
from newsjuice_pipelines.assets.launchpad import from_form
from newsjuice_pipelines.assets.podcast import GROUP, OWNERS, base_model, student_dataset, teacher_scripts
from newsjuice_pipelines.assets.recipe import recipe
from newsjuice_pipelines.assets.student import merged_model, quantised_base, quantised_model
from newsjuice_pipelines.automation.failures import permanent_failures
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS, GPU_POOL
from newsjuice_pipelines.automation.retries import OUTSIDE, TRAINING
from newsjuice_pipelines.podcast.engines import QUANTISED, REMOTE, Engine, EngineOptions, default_engine, open_engine
from newsjuice_pipelines.podcast.judging import decision, latency, promotion, quality, scripts
from newsjuice_pipelines.podcast.teaching import teacher_table
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactError, ArtifactStore, Draft
from newsjuice_pipelines.runtime.leased_gpu import count_gpus, leased_gpu
from newsjuice_pipelines.runtime.provenance import file_fingerprint, hardware
from newsjuice_pipelines.runtime.reports import read_json
from newsjuice_pipelines.settings import load_settings

logger = logging.getLogger("newsjuice.engines")


@dg.asset(
    deps=[merged_model, quantised_model, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"csv"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
    retry_policy=TRAINING,
)
def student_scripts(config: GenerationForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The tuned student's scripts for the validation and test articles, with tokens, timings and finish reasons."""
    return _write_scripts(artifacts.store(), "student_scripts", "merged_model", "quantised_model", "student_podcast_text", config)


@dg.asset(
    deps=[base_model, quantised_base, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"csv"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
    retry_policy=TRAINING,
)
def base_scripts(config: GenerationForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The untuned model's scripts for the same articles: what training has to beat."""
    return _write_scripts(artifacts.store(), "base_scripts", "base_model", "quantised_base", "qwen_podcast_text", config)


def _write_scripts(
    store: ArtifactStore,
    key: str,
    model_key: str,
    quantised_key: str,
    column: scripts.ScriptColumn,
    config: GenerationForm,
) -> dg.MaterializeResult:
    """Generate with a model or its quantised form; rows that a killed run finished, or an earlier one with errors, are kept."""
    from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

    with permanent_failures():
        model, quantised, rows = store.open(model_key), store.open(quantised_key), store.open("student_dataset")
        settings = from_form(config, scripts.GenerationConfig)
        name = _engine_name(config.engine, quantised)
        served = load_settings().server_model
        if name == REMOTE and key == "base_scripts":
            served = load_settings().server_base_model
            if served is None:
                logger.warning("NEWSJUICE_SERVER_BASE_MODEL is not set: the untuned model runs here and not on the server")
                name = _engine_name("auto", quantised)
        plan = recipe("2", {**config.values(), "engine": name}, [model, quantised, rows], **_server(name, served))
        unfinished = _with_errors(store, key, plan)

        def write(draft: Draft) -> dict[str, Any]:
            if unfinished is not None:
                scripts.reuse_finished_rows(scripts.read_scripts_csv(unfinished.path), draft.scratch, column)
            with _lease(name, f"writing {key}"):
                engine = _opener(name, model, quantised, served)(settings.options())
                try:
                    tokenizer = load_tokenizer(model.path)
                    frame = scripts.generate_scripts(
                        rows.path, ("validation", "test"), engine, settings, draft.scratch, column, tokenizer=tokenizer
                    )
                finally:
                    engine.close()
            scripts.write_scripts_csv(frame, draft.path)
            return scripts.scripts_facts(frame)

        artifact = store.publish(key, plan, write, force=config.force or unfinished is not None)
    return materialized(artifact, row_count=artifact.facts["scripts"])


def _with_errors(store: ArtifactStore, key: str, plan: dict[str, Any]) -> Artifact | None:
    """The scripts in force when they were made by the same recipe and some rows ended in an error that may pass."""
    try:
        artifact = store.open(key)
    except ArtifactError:  # none yet, or a damaged one, which is written again anyway
        return None
    return artifact if artifact.recipe == plan and artifact.facts["retryable_errors"] else None


def _engine_name(asked: str | None, quantised: Artifact) -> str:
    """The engine by name: the one asked for, else the setting's, `auto` being resolved for this machine."""
    name = asked or load_settings().student_engine
    if name != "auto":
        return name
    chosen, why = default_engine("cuda" if count_gpus() else "cpu", quantised.path)
    logger.info("engine: auto is %s here, %s", chosen, why)
    return chosen


def _lease(engine: str, what: str) -> AbstractContextManager[Any]:
    """A GPU of its own for an engine that uses one; a server and the quantised model need none of this machine."""
    return nullcontext() if engine in (REMOTE, QUANTISED) else leased_gpu(what)


def _server(engine: str, model: str | None) -> dict[str, Any]:
    """What a recipe holds of the server, where one is asked: another address or model is another result."""
    return {"server": {"url": load_settings().server_url, "model": model}} if engine == REMOTE else {}


def _opener(name: str, model: Artifact, quantised: Artifact, served: str | None) -> Callable[[EngineOptions], Engine]:
    """What opens that engine; a server and its key come from the settings, and `served` is the model's name there."""

    def opened(options: EngineOptions) -> Engine:
        if name != REMOTE:
            return open_engine(name, model.path, quantised=quantised.path, options=options)
        settings = load_settings()
        key = settings.server_api_key
        asked = replace(options, server_url=settings.server_url, server_model=served)
        return open_engine(name, model.path, options=asked, api_key=key.get_secret_value() if key else None)

    return opened


@dg.asset(
    deps=[student_scripts, base_scripts, teacher_scripts, merged_model, quantised_model, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"markdown"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
    retry_policy=TRAINING,
)
def latency_report(config: LatencyForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """How long a script takes, where the time goes, and what it costs: one at a time, in batches, beside the teacher."""
    from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

    store = artifacts.store()
    with permanent_failures():
        student, base = store.open("student_scripts"), store.open("base_scripts")
        model, quantised, rows = store.open("merged_model"), store.open("quantised_model"), store.open("student_dataset")
        days = [store.open(f"teacher_scripts/{day}") for day in store.partitions("teacher_scripts")]
        settings, name = from_form(config, latency.LatencyConfig), _engine_name(config.engine, quantised)
        served = load_settings().server_model

        def write(draft: Draft) -> dict[str, Any]:
            opener = _opener(name, model, quantised, served)
            with _lease(name, "measuring latency"):
                measured = latency.measure_latency(rows.path, load_tokenizer(model.path), opener, settings)
            generation = {
                "student": scripts.read_scripts_csv(student.path),
                "base": scripts.read_scripts_csv(base.path),
            }
            taught = teacher_table.read_teacher_csv([day.path for day in days])
            return latency.latency_report(measured, generation, taught, draft.path, settings)

        inputs = [student, base, model, quantised, rows, *days]
        plan = recipe("2", {**config.values(), "engine": name}, inputs, timed_on=hardware(), **_server(name, served))
        artifact = store.publish("latency_report", plan, write, force=config.force)
    return materialized(artifact)


@dg.asset(
    deps=[student_scripts, base_scripts],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"markdown"},
    code_version="2",
    retry_policy=OUTSIDE,
)
def script_quality_report(config: QualityForm, artifacts: Artifacts, vertex: VertexAI) -> dg.MaterializeResult:
    """Teacher, student, untuned base and lead sentences side by side: format, repetition, support by the article, examples."""
    store = artifacts.store()
    with permanent_failures():
        student, base = store.open("student_scripts"), store.open("base_scripts")
        settings, original = from_form(config, quality.QualityConfig), load_settings().original_outputs
        judge = load_settings().gemini_model if settings.judge else None

        def write(draft: Draft) -> dict[str, Any]:
            tuned, untuned = scripts.read_scripts_csv(student.path), scripts.read_scripts_csv(base.path)
            both = [frame[frame["split"].isin(settings.splits)] for frame in (tuned, untuned)]
            scripts.write_scripts_csv(scripts.side_by_side(*both), draft.path)
            ask = _judge(judge, vertex, store.cache) if judge is not None else None
            return quality.quality_report(tuned, untuned, draft.path, settings, original=original, ask=ask)

        outputs = None if original is None else file_fingerprint(original)
        models = quality.measuring_models(settings)
        plan = recipe("2", config.values(), [student, base], judge=judge, original_outputs=outputs, models=models)
        artifact = store.publish("script_quality_report", plan, write, force=config.force)
    return materialized(artifact)


def _judge(model: str, vertex: VertexAI, cache: Path) -> Callable[[str], str]:
    """The paid teacher's model as the judge; its answers are kept in `cache`, so that no question is paid for twice."""
    from newsjuice_pipelines.podcast.judging.gemini_judge import gemini_judge

    return gemini_judge(vertex.client_factory(), model, cache / "judge.jsonl")


@dg.asset(deps=[latency_report, script_quality_report], group_name=GROUP, owners=OWNERS, kinds={"markdown"}, code_version="2")
def podcast_decision(config: ThresholdsForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """Adopt the student or not, against thresholds written down before the run, with every criterion and what would change it."""
    store = artifacts.store()
    with permanent_failures():
        latencies, qualities = store.open("latency_report"), store.open("script_quality_report")
        thresholds = decision.load_thresholds(config.thresholds)
        promotion.one_student(store, latencies, qualities)

        def write(draft: Draft) -> dict[str, Any]:
            verdict = decision.decide(
                read_json(latencies.path / "results.json"), read_json(qualities.path / "results.json"), thresholds
            )
            return decision.write_decision(verdict, draft.path)

        plan = recipe("2", {**config.values(), **thresholds}, [latencies, qualities])
        artifact = store.publish("podcast_decision", plan, write, force=config.force)
    return materialized(artifact)


@dg.asset(
    deps=[podcast_decision, merged_model, quantised_model],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"huggingface"},
    code_version="1",
)
def promoted_model(context: dg.AssetExecutionContext, config: PromotionForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The model in service: what a person promoted by the id of the run that judged it. No job or schedule materialises it.

    It is replaced in one step, and `roll_back` puts the one before back into service.
    """
    store = artifacts.store()
    with permanent_failures():
        if config.roll_back == bool(config.run_id):
            raise ValueError("say which model: either the run_id of a run with a podcast_decision, or roll_back.")
        if config.roll_back:
            artifact = promotion.roll_back(store)
        else:
            version = _decision_of(context.instance, config.run_id)
            judged = promotion.judged_model(store, version)
            artifact = promotion.promote(store, judged, config.run_id, against_the_decision=config.against_the_decision)
    return materialized(artifact)


def _decision_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """The version of the decision that a run materialised."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    for record in records:
        materialization = record.asset_materialization
        if materialization is not None and materialization.asset_key == podcast_decision.key:
            return str(materialization.metadata["version"].value)
    raise ValueError(f"the run {run_id!r} is not known here, or made no podcast_decision: take the id of one that did.")
