"""The podcast group, second half: training the student, its scripts, and judging it."""

from typing import Any

import dagster as dg

from newsjuice_pipelines.assets.describe import materialized
from newsjuice_pipelines.assets.forms import FinetuneForm, GenerationForm, LatencyForm, MergeForm, ThresholdsForm
from newsjuice_pipelines.assets.launchpad import LaunchpadConfig, chosen_preset, from_form, from_overrides
from newsjuice_pipelines.assets.podcast import GROUP, OWNERS, base_model, student_dataset, teacher_scripts
from newsjuice_pipelines.assets.recipe import recipe
from newsjuice_pipelines.automation.failures import permanent_failures
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS, GPU_POOL
from newsjuice_pipelines.checks.podcast import REGISTERED_IF_ASKED
from newsjuice_pipelines.checks.result import CheckOutcome, as_result
from newsjuice_pipelines.podcast.engines import open_engine
from newsjuice_pipelines.podcast.judging import decision, report, scripts
from newsjuice_pipelines.podcast.teaching import teacher_table
from newsjuice_pipelines.podcast.training import finetune, merge
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.tracking import Tracking
from newsjuice_pipelines.resources.vertex import RegistryRefused, RegistryUnavailable, VertexAI
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactError, ArtifactStore, Draft
from newsjuice_pipelines.runtime.provenance import hardware
from newsjuice_pipelines.runtime.reports import read_json
from newsjuice_pipelines.settings import load_settings


@dg.asset(
    deps=[student_dataset, base_model],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "huggingface"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
)
def lora_adapter(config: FinetuneForm, artifacts: Artifacts, tracking: Tracking) -> dg.MaterializeResult:
    """A LoRA adapter trained on the scripts alone, each ending with the end token; the best epoch by validation loss.

    A run that is killed goes on from its last checkpoint.
    """
    store = artifacts.store()
    with permanent_failures():
        rows, base = store.open("student_dataset"), store.open("base_model")
        stand_in = base.recipe["config"]["name"] == "tiny"
        preset = chosen_preset(finetune.PRESETS, config.preset or ("stand_in" if stand_in else "recommended"))
        settings = from_overrides(config, preset)
        artifact = store.publish(
            "lora_adapter",
            recipe("2", vars(settings), [rows, base]),
            lambda draft: finetune.train_adapter(base.path, rows.path, settings, draft.path, draft.scratch, tracking.tracker()),
            force=config.force,
        )
    return materialized(artifact)


@dg.asset(
    deps=[lora_adapter, base_model, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "huggingface"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    check_specs=[REGISTERED_IF_ASKED],
    code_version="2",
)
def merged_model(config: MergeForm, artifacts: Artifacts, vertex: VertexAI) -> dg.MaterializeResult:
    """The student: base and adapter merged into full-precision weights, with tokenizer, chat template and end tokens.

    The merge gate compares it with base and adapter on held-out prompts; a model that fails is not uploaded anywhere.
    """
    store = artifacts.store()
    with permanent_failures():
        if config.register_with_image:
            vertex.check_registry(store.root)
        adapter, base, rows = store.open("lora_adapter"), store.open("base_model"), store.open("student_dataset")
        settings = from_form(config, merge.MergeConfig)
        artifact = store.publish(
            "merged_model",
            recipe("2", vars(settings), [adapter, base, rows]),
            lambda draft: merge.merge_adapter(base.path, adapter.path, draft.path, settings, rows.path),
            force=config.force,
        )
    return materialized(artifact, checks=[as_result(upload(config, artifact, vertex))])


def upload(config: MergeForm, artifact: Artifact, vertex: VertexAI) -> CheckOutcome:
    """Puts a model that passed the merge gate into the registry, when that was asked for."""
    if not config.register_with_image:
        return CheckOutcome(True, "No upload was asked for.")
    if not artifact.facts["gate"]["passed"]:
        return CheckOutcome(False, "Not uploaded: the merge gate did not pass.")
    labels = {"newsjuice_base": artifact.facts["base_identity"]}
    try:
        name = vertex.register_model(
            "newsjuice-student", artifact.uri, config.register_with_image, artifact.version, labels=labels
        )
    except (RegistryRefused, RegistryUnavailable) as error:
        return CheckOutcome(False, f"Not uploaded: {error}")
    return CheckOutcome(True, f"In the registry as {name}.", {"vertex_model": name})


@dg.asset(
    deps=[merged_model, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"csv"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="1",
)
def student_scripts(config: GenerationForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The tuned student's scripts for the validation and test articles, with tokens, timings and finish reasons."""
    return _write_scripts(artifacts.store(), "student_scripts", "merged_model", "student_podcast_text", config)


@dg.asset(
    deps=[base_model, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"csv"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="1",
)
def base_scripts(config: GenerationForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The untuned model's scripts for the same articles: what training has to beat."""
    return _write_scripts(artifacts.store(), "base_scripts", "base_model", "qwen_podcast_text", config)


def _write_scripts(
    store: ArtifactStore, key: str, model_key: str, column: scripts.ScriptColumn, config: GenerationForm
) -> dg.MaterializeResult:
    """Generate with the model artefact `model_key`; rows that a killed run finished are kept."""
    with permanent_failures():
        model, rows = store.open(model_key), store.open("student_dataset")
        name = config.engine or load_settings().student_engine
        settings = from_form(config, scripts.GenerationConfig)

        def write(draft: Draft) -> dict[str, Any]:
            engine = open_engine(name, model.path)
            try:
                frame = scripts.generate_scripts(rows.path, ("validation", "test"), engine, settings, draft.scratch, column)
            finally:
                engine.close()
            scripts.write_scripts_csv(frame, draft.path)
            return scripts.scripts_facts(frame)

        plan = recipe("1", {**config.values(), "engine": name}, [model, rows])
        artifact = store.publish(key, plan, write, force=config.force or _has_errors(store, key))
    return materialized(artifact, row_count=artifact.facts["scripts"])


def _has_errors(store: ArtifactStore, key: str) -> bool:
    """Whether the scripts in force have rows that ended in an error: these are tried again even by the same recipe."""
    try:
        return "error" in store.open(key).facts["by_finish_reason"]
    except ArtifactError:  # none yet, or a damaged one, which is written again anyway
        return False


@dg.asset(
    deps=[student_scripts, base_scripts, teacher_scripts, merged_model, student_dataset],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"markdown"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="1",
)
def latency_report(config: LatencyForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """How long a script takes and where the time goes: to the first token, while decoding, alone and in batches."""
    store = artifacts.store()
    with permanent_failures():
        student, base = store.open("student_scripts"), store.open("base_scripts")
        model, rows = store.open("merged_model"), store.open("student_dataset")
        days = [store.open(f"teacher_scripts/{day}") for day in store.partitions("teacher_scripts")]

        def write(draft: Draft) -> dict[str, Any]:
            taught = teacher_table.read_teacher_csv([day.path for day in days])
            engine = open_engine("reference", model.path)
            try:
                alone = report.measure_single_stream(rows.path, engine, config.prompts, config.max_new_tokens)
            finally:
                engine.close()
            tuned, untuned = scripts.read_scripts_csv(student.path), scripts.read_scripts_csv(base.path)
            names = ", ".join(sorted(set(taught["model"])))
            return report.latency_report(tuned, untuned, taught["latency_s"].astype(float).tolist(), alone, draft.path, names)

        plan = recipe("1", config.values(), [student, base, model, rows, *days], timed_on=hardware())
        artifact = store.publish("latency_report", plan, write, force=config.force)
    return materialized(artifact)


@dg.asset(deps=[student_scripts, base_scripts], group_name=GROUP, owners=OWNERS, kinds={"markdown"}, code_version="1")
def script_quality_report(config: LaunchpadConfig, artifacts: Artifacts) -> dg.MaterializeResult:
    """Teacher, student, untuned base and lead sentences side by side: format, repetition, support by the article, examples."""
    store = artifacts.store()
    with permanent_failures():
        student, base = store.open("student_scripts"), store.open("base_scripts")
        artifact = store.publish(
            "script_quality_report",
            recipe("1", {}, [student, base]),
            lambda draft: report.quality_report(
                scripts.read_scripts_csv(student.path), scripts.read_scripts_csv(base.path), draft.path
            ),
            force=config.force,
        )
    return materialized(artifact)


@dg.asset(deps=[latency_report, script_quality_report], group_name=GROUP, owners=OWNERS, kinds={"markdown"}, code_version="1")
def podcast_decision(config: ThresholdsForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """Adopt the student or not, against thresholds written down before the run, with every criterion."""
    store = artifacts.store()
    with permanent_failures():
        latency, quality = store.open("latency_report"), store.open("script_quality_report")
        thresholds = decision.load_thresholds(config.thresholds)

        def write(draft: Draft) -> dict[str, Any]:
            verdict = decision.decide(
                read_json(latency.path / "results.json"), read_json(quality.path / "results.json"), thresholds
            )
            return decision.write_decision(verdict, draft.path)

        plan = recipe("1", {**config.values(), **thresholds}, [latency, quality])
        artifact = store.publish("podcast_decision", plan, write, force=config.force)
    return materialized(artifact)
