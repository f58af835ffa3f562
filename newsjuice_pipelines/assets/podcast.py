"""The podcast group: from chunks in PostgreSQL to a student model, its reports and the decision."""

import dataclasses
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from newsjuice_pipelines.assets.describe import drawn, dry_run, materialized, materialized_days
from newsjuice_pipelines.assets.forms import BaseModelForm, ChunkForm, DatasetForm, TeacherForm
from newsjuice_pipelines.assets.launchpad import chosen_preset, from_form, from_overrides
from newsjuice_pipelines.assets.recipe import recipe
from newsjuice_pipelines.automation.failures import permanent_failures
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS, GPU_POOL, VERTEX_POOL
from newsjuice_pipelines.automation.partitions import daily, days_of
from newsjuice_pipelines.automation.retries import OUTSIDE
from newsjuice_pipelines.checks.podcast import (
    CHUNKS_ARE_USABLE,
    SCRIPTS_ARE_FIT_FOR_TRAINING,
    evaluate_chunks,
    evaluate_scripts,
)
from newsjuice_pipelines.checks.result import as_result
from newsjuice_pipelines.database.read import read_articles
from newsjuice_pipelines.demo import DEMO_HEADLINES
from newsjuice_pipelines.podcast.sampling import chunks
from newsjuice_pipelines.podcast.teaching import teacher_report, teacher_run, teacher_table
from newsjuice_pipelines.podcast.teaching.batches import BatchConfig, BatchService
from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.teacher import Teacher
from newsjuice_pipelines.podcast.training import base_model as base_models
from newsjuice_pipelines.podcast.training import dataset, tiny_model
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.postgres import ArticleDatabase, TeacherLedger
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.runtime.artifacts import Artifact, Draft
from newsjuice_pipelines.runtime.provenance import fingerprint, folder_fingerprint
from newsjuice_pipelines.settings import load_settings

GROUP = "podcast"
OWNERS = ["team:podcast"]


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"postgres", "parquet"},
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[CHUNKS_ARE_USABLE],
    code_version="2",
    retry_policy=OUTSIDE,
)
def article_chunks(
    context: dg.AssetExecutionContext, config: ChunkForm, database: ArticleDatabase, artifacts: Artifacts
) -> dg.MaterializeResult:
    """The sample of article chunks, one row a chunk, by the day on which they were fetched.

    The N lowest hash ranks of the whole table are the sample, so a day's rows do not depend on the days asked for.
    """
    days = days_of(context)
    with permanent_failures():
        sampling = from_form(config, chunks.ChunkSampling)
        sample = database.read(
            lambda connection: chunks.sample_chunks(
                connection,
                database.chunks_table,
                sampling,
                days[0],
                days[-1],
                since=daily.start.date(),
                statement_timeout_s=database.statement_timeout_s,
            )
        )
        store = artifacts.store()

        def publish(day: date) -> Artifact:
            rows = sample.rows[sample.rows["fetched_at"].dt.date == day]
            plan = recipe("2", config.values(), day=day.isoformat(), rows=fingerprint(rows.astype(str).values.tolist()))
            context.add_asset_metadata({"dagster/row_count": len(rows)}, partition_key=day.isoformat())
            return store.publish(
                f"article_chunks/{day}", plan, lambda draft: chunks.write_chunks(rows, draft.path), force=config.force
            )

        written = [publish(day) for day in days]
    check = as_result(evaluate_chunks(sample.rows, sample.counts, sample.share_read))
    return materialized_days(written, {"counts": sample.counts, "share_read": sample.share_read}, len(sample.rows), check)


@dg.asset(
    deps=[article_chunks],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"gemini", "csv"},
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=VERTEX_POOL,
    output_required=False,  # a dry run writes nothing
    dagster_type=dg.Nothing,  # type: ignore[call-overload]  # a Dagster type, which its annotations do not know as one
    check_specs=[SCRIPTS_ARE_FIT_FOR_TRAINING],
    code_version="2",
    retry_policy=OUTSIDE,
)
def teacher_scripts(
    context: dg.AssetExecutionContext, config: TeacherForm, artifacts: Artifacts, ledger: TeacherLedger, vertex: VertexAI
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """The teacher's script for each chunk, with status, tokens, latency and cost. Only rows with status `ok` go on.

    Replies are kept in the ledger before they are used, so a run that is killed pays for nothing twice.
    """
    store = artifacts.store()
    with permanent_failures():
        sources = {day: store.open(f"article_chunks/{day}") for day in days_of(context)}
        rows = chunks.read_chunks([source.path for source in sources.values()])
        asked, service_in = _teacher(config, vertex)
        how, batches = from_form(config, AskingConfig), from_form(config, BatchConfig)
        if config.dry_run:
            plan = teacher_run.plan_scripts(rows, asked, ledger.open(), how, batches)
            yield dry_run(context, "teacher_scripts", plan.sentence(), dataclasses.asdict(plan), SCRIPTS_ARE_FIT_FOR_TRAINING)
            return
        run = teacher_run.write_scripts(rows, asked, ledger.open(), how, batches, service_in)

        def publish(day: date, source: Artifact) -> Artifact:
            mine = run.scripts[run.scripts["chunk_id"].isin(chunks.read_chunks([source.path])["chunk_id"])]
            plan = {"model": asked.model, "prompt_version": asked.prompt_version, "settings": dict(asked.settings)}
            outcome = fingerprint(mine.astype(str).values.tolist())  # a row that failed before may have a script now
            context.add_asset_metadata({"dagster/row_count": len(mine)}, partition_key=day.isoformat())
            return store.publish(
                f"teacher_scripts/{day}",
                recipe("2", plan, [source], outcome=outcome),
                lambda draft: teacher_table.write_teacher_csv(mine, draft.path),
                force=config.force,
            )

        written = [publish(day, source) for day, source in sources.items()]
    sections = dict(zip(rows["chunk_id"], rows["section"], strict=True))
    facts = {**teacher_table.summarize_scripts(run.scripts), "this_run": dict(run.facts)}
    check = as_result(evaluate_scripts(facts["status"]))
    page = dg.MetadataValue.md(teacher_report.outcome_page(run.scripts, sections))
    plot = drawn("outcomes", lambda path: teacher_report.plot_outcomes(run.scripts, path, sections))
    yield materialized_days(written, facts, len(run.scripts), check, {"outcomes": page, **plot})


def _teacher(config: TeacherForm, vertex: VertexAI) -> tuple[Teacher, Callable[[str], BatchService] | None]:
    """The teacher that the form or the settings name, and its batch service. The paid one is never a fallback."""
    settings = load_settings()
    name = config.teacher or settings.teacher
    if name == "extractive":
        return ExtractiveTeacher(), None
    if name != "gemini":
        raise ValueError(f"there is no teacher {name!r}: use `extractive` or `gemini`.")
    from newsjuice_pipelines.podcast.teaching.gemini import GeminiConfig, GeminiTeacher
    from newsjuice_pipelines.podcast.teaching.gemini_batch import GeminiBatches

    model = config.gemini_model or settings.gemini_model
    gemini = GeminiTeacher(vertex.client_factory(), model, config.prompt_version, from_form(config, GeminiConfig))
    return gemini, lambda folder: GeminiBatches(gemini, folder)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"huggingface", "pytorch"},
    op_tags=GPU_OP_TAGS,
    pool=GPU_POOL,
    code_version="1",
    retry_policy=OUTSIDE,
)
def base_model(config: BaseModelForm, database: ArticleDatabase, artifacts: Artifacts) -> dg.MaterializeResult:
    """The untuned model: `tiny`, a small Qwen3 built and pre-trained here, or a hub model at a pinned revision.

    Both are folders in Hugging Face layout and are loaded by the same code.
    """
    settings = load_settings()
    name = config.name or settings.base_model
    store = artifacts.store()
    with permanent_failures():
        if name == "tiny":
            with database.read_only() as connection:
                texts = _tiny_corpus(read_articles(connection, config.articles))
            shape = from_form(config, tiny_model.TinyConfig)
            artifact = store.publish(
                "base_model",
                recipe("1", {"name": name, **vars(shape)}, texts=fingerprint(texts)),
                lambda draft: tiny_model.build_tiny(texts, shape, draft.path),
                force=config.force,
            )
        else:
            local = Path(name).expanduser()
            revision = config.revision or settings.base_model_revision or base_models.default_revision(name)
            source = {"folder": folder_fingerprint(local)} if local.is_dir() else {"revision": revision}
            artifact = store.publish(
                "base_model",
                recipe("1", {"name": name, **source}),
                lambda draft: base_models.fetch_base_model(name, revision, draft.path),
                force=config.force,
            )
    return materialized(artifact)


def _tiny_corpus(articles: Any) -> list[str]:
    """Texts for the stand-in: the articles, and the packaged headlines for a wider vocabulary."""
    import json

    headlines = [json.loads(line) for line in DEMO_HEADLINES.read_text(encoding="utf-8").splitlines()]
    return [
        *(f"{title}\n\n{content}" for title, content in zip(articles["title"], articles["content"], strict=True)),
        *(f"{row['headline']}. {row['short_description']}" for row in headlines),
    ]


@dg.asset(deps=[teacher_scripts, base_model], group_name=GROUP, owners=OWNERS, kinds={"parquet"}, code_version="2")
def student_dataset(config: DatasetForm, artifacts: Artifacts) -> dg.MaterializeResult:
    """The scripts as chat messages, split 80/10/10 by article and near-duplicate cluster; all days up to the row limit.

    The article is cut to the token budget of the base model's tokenizer where it must be; the script never is. Two rows are
    shown with what is trained and what is not.
    """
    store = artifacts.store()
    with permanent_failures():
        base = store.open("base_model")
        days = [store.open(f"teacher_scripts/{day}") for day in store.partitions("teacher_scripts")]
        if not days:
            store.open("teacher_scripts")

        def write(draft: Draft) -> dict[str, Any]:
            scripts = teacher_table.read_teacher_csv([day.path for day in days])
            tokenizer = base_models.load_tokenizer(base.path)
            return dataset.build_student_dataset(scripts, tokenizer, settings, draft.path)

        settings = from_overrides(config, chosen_preset(dataset.DATASET_PRESETS, config.preset))
        artifact = store.publish("student_dataset", recipe("2", vars(settings), [base, *days]), write, force=config.force)
    return materialized(artifact, row_count=sum(artifact.facts["rows"].values()))
