"""The classification group: from news headlines to classifiers, their reports and the decision."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from newsjuice_pipelines.assets.describe import materialized
from newsjuice_pipelines.assets.forms import (
    AuditForm,
    ClassifierForm,
    EvaluationForm,
    ExportForm,
    ExternalForm,
    HuffPostForm,
    SplitForm,
    TaxonomyForm,
    ThresholdsForm,
)
from newsjuice_pipelines.assets.launchpad import LaunchpadConfig, from_form
from newsjuice_pipelines.assets.recipe import recipe
from newsjuice_pipelines.automation.failures import permanent_failures
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS, GPU_POOL
from newsjuice_pipelines.automation.partitions import CLASSIFIERS, classifier_models
from newsjuice_pipelines.automation.retries import OUTSIDE, TRAINING
from newsjuice_pipelines.classification.corpus import huffpost, kaggle, split
from newsjuice_pipelines.classification.corpus import taxonomy as taxonomies
from newsjuice_pipelines.classification.corpus.split_config import SplitConfig
from newsjuice_pipelines.classification.judging import decision, evaluate, overlap
from newsjuice_pipelines.classification.judging import leaderboard as leaderboards
from newsjuice_pipelines.classification.judging.calibrate import read_calibration
from newsjuice_pipelines.classification.judging.in_force import current_evaluations, test_readings
from newsjuice_pipelines.classification.serving import crosswalk, external, onnx_export
from newsjuice_pipelines.classification.training import models
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig, recipe_for
from newsjuice_pipelines.database.read import read_articles
from newsjuice_pipelines.demo import DEMO_HEADLINES
from newsjuice_pipelines.remote.jobs import TrainingJob, classifier_settings
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.postgres import ArticleDatabase
from newsjuice_pipelines.resources.tracking import Tracking
from newsjuice_pipelines.resources.training import trained
from newsjuice_pipelines.runtime.artifacts import Draft
from newsjuice_pipelines.runtime.leased_gpu import leased_gpu
from newsjuice_pipelines.runtime.provenance import file_fingerprint, fingerprint, folder_fingerprint, hardware
from newsjuice_pipelines.settings import load_settings

GROUP = "classification"
OWNERS = ["team:classification"]
KAGGLE = "kaggle"  # instead of a path


@dg.asset(group_name=GROUP, owners=OWNERS, kinds={"parquet"}, code_version="2")
def huffpost_articles(config: HuffPostForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The labelled headlines, one row a text. What cannot be used is counted by reason, with examples.

    Text is headline plus description; link, authors and date are kept apart, since they give the section away.
    """
    settings = load_settings()
    with permanent_failures():
        path = Path(config.path or settings.huffpost_path or DEMO_HEADLINES)
        if path.name == KAGGLE and not path.exists():
            path = kaggle.download_huffpost(settings.home / "downloads")
        plan = recipe("2", {"file": path.name}, rows=file_fingerprint(path))
        artifact = artifacts.store().publish(
            "huffpost_articles",
            plan,
            lambda draft: huffpost.write_huffpost(huffpost.load_huffpost(path), draft.path),
            force=config.force,
        )
    return materialized(artifact, row_count=artifact.facts["row_count"])


@dg.asset(deps=[huffpost_articles], group_name=GROUP, owners=OWNERS, kinds={"yaml"}, code_version="2")
def taxonomy(config: TaxonomyForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The classes, and which section of the raw data goes to which. Sections without a class are counted, never forced."""
    store = artifacts.store()
    with permanent_failures():
        rows = store.open("huffpost_articles")
        source = taxonomies.taxonomy_file(config.name)

        def write(draft: Draft) -> dict[str, Any]:
            (draft.path / "taxonomy.yaml").write_bytes(source.read_bytes())
            return taxonomies.write_taxonomy(taxonomies.load_taxonomy(source), huffpost.read_huffpost(rows.path), draft.path)

        plan = recipe("2", {"name": config.name}, [rows], file=file_fingerprint(source))
        artifact = store.publish("taxonomy", plan, write, force=config.force)
    return materialized(artifact)


@dg.asset(deps=[huffpost_articles, taxonomy], group_name=GROUP, owners=OWNERS, kinds={"parquet"}, code_version="2")
def balanced_split(config: SplitForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """Train, validation, calibration and test rows: up to 1,000 a class, duplicates on one side, the test part read once."""
    store = artifacts.store()
    with permanent_failures():
        rows, mapping = store.open("huffpost_articles"), store.open("taxonomy")

        def write(draft: Draft) -> dict[str, Any]:
            classes = taxonomies.load_taxonomy(mapping.path / "taxonomy.yaml")
            parts = split.balanced_split(huffpost.read_huffpost(rows.path), classes, from_form(config, SplitConfig))
            return split.write_split(parts, draft.path)

        artifact = store.publish("balanced_split", recipe("2", config.values(), [rows, mapping]), write, force=config.force)
    return materialized(artifact, row_count=artifact.facts["row_count"])


@dg.asset(deps=[balanced_split], group_name=GROUP, owners=OWNERS, kinds={"markdown"}, code_version="2")
def overlap_report(config: AuditForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """What would flatter or limit any classifier: leaks, wrong labels, classes that overlap; and a taxonomy that mends them."""
    store = artifacts.store()
    with permanent_failures():
        parts = store.open("balanced_split")
        artifact = store.publish(
            "overlap_report",
            recipe("2", config.values(), [parts]),
            lambda draft: overlap.overlap_report(parts.path, draft.path, from_form(config, overlap.AuditConfig)),
            force=config.force,
        )
    return materialized(artifact)


@dg.asset(
    deps=[balanced_split],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "huggingface"},
    partitions_def=classifier_models,
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
    retry_policy=TRAINING,
)
def classifier_checkpoint(
    context: dg.AssetExecutionContext, config: ClassifierForm, artifacts: Artifacts, tracking: Tracking
) -> dg.MaterializeResult:
    """One trained classifier a model, in Hugging Face layout; early stopping on validation loss, the test part unread.

    With NEWSJUICE_TRAINING_ON=vertex a custom job trains it (paid).
    """
    store, model = artifacts.store(), context.partition_key
    with permanent_failures():
        parts = store.open("balanced_split")
        settings, entry = from_form(config, ClassifierConfig), CLASSIFIERS[model]
        plan = recipe("2", config.values(), [parts], base=_base_of(entry, settings), training=asdict(recipe_for(entry, settings)))
        job = TrainingJob(f"classifier_checkpoint/{model}", plan, classifier_settings(entry, settings), config.force)
        artifact = trained(context, store, job, [parts], tracking.tracker())
    return materialized(artifact)


@dg.asset(
    deps=[classifier_checkpoint, balanced_split],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"markdown"},
    partitions_def=classifier_models,
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
)
def classifier_eval_report(
    context: dg.AssetExecutionContext, config: EvaluationForm, artifacts: Artifacts
) -> dg.MaterializeResult:
    """Scores on the test part with intervals, calibration, and the confidence above which 90 % precision is certified.

    A second checkpoint of a model is judged on the same test part only with `read_test_again`, and the report then says so.
    """
    store, model = artifacts.store(), context.partition_key
    with permanent_failures():
        checkpoint, parts = store.open(f"classifier_checkpoint/{model}"), store.open("balanced_split")
        test_part = fingerprint(sorted(split.read_part(parts.path, "test")["row_id"]))
        readings = test_readings(store, model)
        earlier = [version for version in readings.get(test_part, []) if version != checkpoint.version]

        def write(draft: Draft) -> dict[str, Any]:
            settings = from_form(config, evaluate.EvaluationConfig)
            with leased_gpu(f"evaluating {model}"):
                facts = evaluate.evaluate_classifier(
                    checkpoint.path, parts.path, draft.path, settings, earlier_readings=len(earlier)
                )
            return {**facts, "readings": {**readings, test_part: [*earlier, checkpoint.version]}}

        plan = recipe("2", config.values(), [checkpoint, parts], timed_on=hardware(), judged_before=earlier)
        artifact = store.publish(f"classifier_eval_report/{model}", plan, write, force=config.force)
    return materialized(artifact)


@dg.asset(
    deps=[classifier_checkpoint, balanced_split],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"onnx"},
    partitions_def=classifier_models,
    code_version="1",
)
def exported_classifier(context: dg.AssetExecutionContext, config: ExportForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The classifier in ONNX with 8-bit weights for fast answers on a CPU, where it stays as accurate on the validation part."""
    store, model = artifacts.store(), context.partition_key
    with permanent_failures():
        checkpoint, parts = store.open(f"classifier_checkpoint/{model}"), store.open("balanced_split")
        artifact = store.publish(
            f"exported_classifier/{model}",
            recipe("1", config.values(), [checkpoint, parts]),
            lambda draft: onnx_export.export_classifier(
                checkpoint.path, parts.path, draft.path, from_form(config, onnx_export.ExportConfig)
            ),
            force=config.force,
        )
    return materialized(artifact)


@dg.asset(
    deps=[classifier_checkpoint, classifier_eval_report, taxonomy],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"csv"},
    partitions_def=classifier_models,
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="2",
    retry_policy=OUTSIDE,
)
def external_predictions(
    context: dg.AssetExecutionContext, config: ExternalForm, artifacts: Artifacts, database: ArticleDatabase
) -> dg.MaterializeResult:
    """Articles of another source, filed under our classes and compared with their own labels through a crosswalk.

    Filed, offered as top three, or abstained, by the certified thresholds of the evaluation.
    """
    store, model = artifacts.store(), context.partition_key
    path = Path(config.csv) if config.csv else load_settings().external_csv
    with permanent_failures():
        checkpoint, report = store.open(f"classifier_checkpoint/{model}"), store.open(f"classifier_eval_report/{model}")
        mapping = store.open("taxonomy")
        if path is not None:
            rows = external.read_external_csv(path)
        else:
            with database.read_only() as connection:
                rows = read_articles(connection, config.articles)
        labels = crosswalk.load_crosswalk(config.crosswalk)
        plan = recipe(
            "2",
            {**config.values(), "labels": {name: list(found) for name, found in labels.labels.items()}},
            [checkpoint, report, mapping],
            rows=fingerprint(rows.astype(str).values.tolist()),
        )

        def write(draft: Draft) -> dict[str, Any]:
            sections = taxonomies.load_taxonomy(mapping.path / "taxonomy.yaml").mapping
            with leased_gpu(f"external predictions of {model}"):
                return external.predict_external(
                    rows,
                    checkpoint.path,
                    read_calibration(report.path),
                    labels,
                    draft.path,
                    sections=sections,
                    compare_raw_strings=config.compare_raw_strings,
                )

        artifact = store.publish(f"external_predictions/{model}", plan, write, force=config.force)
    return materialized(artifact, row_count=len(rows))


@dg.asset(deps=[classifier_eval_report], group_name=GROUP, owners=OWNERS, kinds={"markdown"}, code_version="2")
def model_leaderboard(config: LaunchpadConfig, artifacts: Artifacts) -> dg.MaterializeResult:
    """The models that were evaluated on the current split, ranked, with paired tests so that noise is not called a winner."""
    store = artifacts.store()
    with permanent_failures():
        evaluations = current_evaluations(store)
        artifact = store.publish(
            "model_leaderboard",
            recipe("2", {}, evaluations.values()),
            lambda draft: leaderboards.leaderboard({model: found.path for model, found in evaluations.items()}, draft.path),
            force=config.force,
        )
    return materialized(artifact)


@dg.asset(deps=[model_leaderboard, classifier_eval_report], group_name=GROUP, owners=OWNERS, kinds={"markdown"}, code_version="2")
def classifier_decision(config: ThresholdsForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """Adopt the best classifier or not, against thresholds written down before the run, with every criterion."""
    store = artifacts.store()
    with permanent_failures():
        board, evaluations = store.open("model_leaderboard"), current_evaluations(store)
        thresholds = decision.load_thresholds(config.thresholds)

        def write(draft: Draft) -> dict[str, Any]:
            results = {model: leaderboards.read_results(found.path) for model, found in evaluations.items()}
            verdict = decision.decide(leaderboards.read_results(board.path), results, thresholds)
            return decision.write_decision(verdict, draft.path)

        plan = recipe("2", {**config.values(), **asdict(thresholds)}, [board, *evaluations.values()])
        artifact = store.publish("classifier_decision", plan, write, force=config.force)
    return materialized(artifact)


def _base_of(entry: models.BaseModel, settings: ClassifierConfig) -> Any:
    """What the training starts from: the content of a folder, or a hub model and its commit; None for a linear model."""
    if not entry.is_encoder:
        return None
    location, revision = models.weights_location(entry, settings.base_path, settings.revision)
    return [location, revision] if revision else folder_fingerprint(Path(location))
