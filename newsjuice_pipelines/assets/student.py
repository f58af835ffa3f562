"""The podcast group, second part: training the student, merging it, and its quantised form. Its scripts are `judging.py`."""

from typing import Any

import dagster as dg

from newsjuice_pipelines.assets.describe import materialized
from newsjuice_pipelines.assets.forms import FinetuneForm, MergeForm, QuantiseForm
from newsjuice_pipelines.assets.launchpad import chosen_preset, from_form, from_overrides
from newsjuice_pipelines.assets.podcast import GROUP, OWNERS, base_model, student_dataset
from newsjuice_pipelines.assets.recipe import recipe
from newsjuice_pipelines.automation.failures import permanent_failures
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS, GPU_POOL
from newsjuice_pipelines.automation.retries import TRAINING
from newsjuice_pipelines.checks.podcast import REGISTERED_IF_ASKED
from newsjuice_pipelines.checks.result import CheckOutcome, as_result
from newsjuice_pipelines.podcast.quantising import quantise
from newsjuice_pipelines.podcast.training import finetune, merge
from newsjuice_pipelines.remote.jobs import TrainingJob
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.tracking import Tracking
from newsjuice_pipelines.resources.training import trained
from newsjuice_pipelines.resources.vertex import RegistryRefused, RegistryUnavailable, VertexAI
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactStore, Draft
from newsjuice_pipelines.runtime.leased_gpu import leased_gpu
from newsjuice_pipelines.runtime.provenance import package_versions


@dg.asset(
    deps=[student_dataset, base_model],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "huggingface"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
    retry_policy=TRAINING,
)
def lora_adapter(
    context: dg.AssetExecutionContext, config: FinetuneForm, artifacts: Artifacts, tracking: Tracking
) -> dg.MaterializeResult:
    """A LoRA adapter trained on the scripts alone, each ending with the end token; the best epoch by validation loss.

    A run that is killed goes on from its last checkpoint. With NEWSJUICE_TRAINING_ON=vertex a custom job trains it (paid).
    """
    store = artifacts.store()
    with permanent_failures():
        rows, base = store.open("student_dataset"), store.open("base_model")
        stand_in = base.recipe["config"]["name"] == "tiny"
        preset = chosen_preset(finetune.PRESETS, config.preset or ("stand_in" if stand_in else "recommended"))
        settings = from_overrides(config, preset)
        job = TrainingJob("lora_adapter", recipe("2", vars(settings), [rows, base]), vars(settings), config.force)
        artifact = trained(context, store, job, [rows, base], tracking.tracker())
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

        def write(draft: Draft) -> dict[str, Any]:
            with leased_gpu("merging the student"):
                return merge.merge_adapter(base.path, adapter.path, draft.path, settings, rows.path)

        plan = recipe("2", vars(settings), [adapter, base, rows])
        artifact = store.publish("merged_model", plan, write, force=config.force)
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


@dg.asset(deps=[merged_model, student_dataset], group_name=GROUP, owners=OWNERS, kinds={"openvino"}, code_version="1")
def quantised_model(config: QuantiseForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The student with weights of 8 or 4 bits as one GGUF file, for the CPU engine and for llama.cpp.

    Its gate compares it with the merged model; only a form that passes is the default engine on a CPU.
    """
    return _quantise(artifacts.store(), "quantised_model", "merged_model", config)


@dg.asset(deps=[base_model, student_dataset], group_name=GROUP, owners=OWNERS, kinds={"openvino"}, code_version="1")
def quantised_base(config: QuantiseForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The untuned model in the same form, so that base and student are compared on one engine."""
    return _quantise(artifacts.store(), "quantised_base", "base_model", config)


def _quantise(store: ArtifactStore, key: str, model_key: str, config: QuantiseForm) -> dg.MaterializeResult:
    with permanent_failures():
        model, rows = store.open(model_key), store.open("student_dataset")
        settings = from_form(config, quantise.QuantiseConfig)
        # Without the engine the gate stays open, so installing it makes another artefact.
        plan = recipe("1", vars(settings), [model, rows], engine=package_versions().get("openvino-genai"))
        artifact = store.publish(
            key, plan, lambda draft: quantise.quantise_model(model.path, rows.path, draft.path, settings), force=config.force
        )
    return materialized(artifact)
