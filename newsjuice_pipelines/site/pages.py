"""The pages of the site: what stands on each. How it looks is `templates/`, how files get on disk `build.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from newsjuice_pipelines import __version__
from newsjuice_pipelines.runtime.artifacts import ArtifactCorrupted
from newsjuice_pipelines.site import figures, ledger, lineage
from newsjuice_pipelines.site.catalogue import BY_NAME, PAGES, PAGES_BY_MODEL, Asset, Group
from newsjuice_pipelines.site.document import Document, anchor, convert, data_uri
from newsjuice_pipelines.site.records import Record, Records

NAVIGATION = (
    ("index.html", "Overview"),
    ("podcast.html", "Podcast"),
    ("classifier.html", "Classifier"),
    ("defects.html", "Defects"),
    ("benchmarks.html", "Benchmarks"),
    ("lineage.html", "Lineage"),
)
SECTIONS: dict[Group, tuple[str, str]] = {
    "podcast": ("podcast.html", "Podcast scripts"),
    "classification": ("classifier.html", "Topic classifier"),
}


@dataclass(frozen=True)
class Shown:
    """One report: `document` is None where the artefact is not there, and `problem` says so where it is damaged."""

    asset: Asset
    file: str
    title: str
    partition: str | None = None
    made: lineage.Made | None = None
    document: Document | None = None
    plots: tuple[tuple[str, str], ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Site:
    """Everything that the pages show. `benchmarks` is the folder of `newsjuice bench` results, or None."""

    records: Records
    benchmarks: Path | None
    built_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Page:
    """One page: `below` is the entry of the navigation that it belongs to."""

    template: str
    file: str
    title: str
    below: str
    values: Mapping[str, Any]


def render(site: Site) -> dict[str, str]:
    """The HTML of every page by file name; whole even where assets are missing or damaged.

    Raises:
        ValueError: a file of benchmark results is broken; the message names it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("newsjuice_pipelines.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    histories = lineage.histories(site.records)
    reports = {group: [_shown(site.records, BY_NAME[name], histories) for name in names] for group, names in PAGES.items()}
    models = _by_model(site.records, histories)
    common = {
        "navigation": NAVIGATION,
        "sections": SECTIONS,
        "version": __version__,
        "built_at": site.built_at,
        "verdicts": {group: _verdict(site.records, group) for group in SECTIONS},
        "reports": reports,
        "models": models,
    }
    shown = [
        Page("report.html.jinja", one.file, one.title, SECTIONS[one.asset.group][0], {"shown": one})
        for one in chain(*reports.values(), *models.values())
    ]
    return {
        page.file: templates.get_template(page.template).render(
            file=page.file, title=page.title, here=page.below, **common, **page.values
        )
        for page in [*_sections(site, histories), *shown]
    }


def _sections(site: Site, histories: Mapping[str, lineage.History]) -> Iterator[Page]:
    """The pages of the navigation."""
    results = _benchmark_pages(site.benchmarks)

    def page(file: str, title: str, template: str | None = None, **values: Any) -> Page:
        return Page(f"{template or Path(file).stem}.html.jinja", file, title, file, values)

    yield page("index.html", "Should we adopt them?", "overview", key_figures=_key_figures(site.records))
    for group, (file, title) in SECTIONS.items():
        yield page(file, title, "section", group=group)
    yield page(
        "defects.html",
        "What the first experiment did wrong",
        ledger=ledger.DEFECTS,
        measured=ledger.measured(_json(site.benchmarks, "defects")),
        benchmark=next((found for found in results if found.name == "defects"), None),
        benchmark_names={found.name for found in results},
    )
    yield page("benchmarks.html", "Benchmarks", benchmarks=results, folder=site.benchmarks)
    yield page("lineage.html", "Lineage", drawings=[lineage.draw(group, histories) for group in SECTIONS])


@dataclass(frozen=True)
class BenchmarkPage:
    """The results of one benchmark."""

    name: str
    title: str
    document: Document


def _benchmark_pages(folder: Path | None) -> list[BenchmarkPage]:
    found = []
    for path in sorted(folder.glob("*.md")) if folder else []:
        pictures = {picture.name: picture.read_bytes() for picture in path.parent.glob("*.png")}
        document = convert(path.read_text(encoding="utf-8"), pictures, level=3, prefix=f"{path.stem}-")
        found.append(BenchmarkPage(path.stem, document.title or path.stem, document))
    return found


def _json(folder: Path | None, name: str) -> Mapping[str, Any]:
    path = folder / f"{name}.json" if folder else None
    if path is None or not path.exists():
        return {}
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): run `newsjuice bench {name} --out {folder}` again.") from None
    return results


def _verdict(records: Records, group: Group) -> figures.Verdict | str:
    """The verdict, or what is wrong with the artefact that holds it."""
    try:
        return figures.verdict(records, group)
    except ArtifactCorrupted as error:
        return str(error)


@dataclass(frozen=True)
class KeyFigure:
    """One figure of the first page; `detail` stands smaller below it."""

    name: str
    value: str
    detail: str


def _key_figures(records: Records) -> dict[Group, list[KeyFigure]]:
    of: dict[Group, Any] = {"podcast": figures.podcast_figures, "classification": figures.classifier_figures}
    return {group: list(_until_damaged(found(records))) for group, found in of.items()}


def _until_damaged(rows: Iterator[tuple[str, str]]) -> Iterator[KeyFigure]:
    try:
        for name, value in rows:
            if not name.endswith("decision"):  # the verdict stands above the figures
                main, _, detail = value.partition("  ") if "  " in value else value.partition(": ")
                yield KeyFigure(name, main, detail.strip("()"))
    except ArtifactCorrupted as error:
        yield KeyFigure("a figure", "damaged", str(error))


def _by_model(records: Records, histories: Mapping[str, lineage.History]) -> dict[str, list[Shown]]:
    """The reports of each classifier, in one order; a model has a row as soon as it has any of them."""
    names = sorted({model for asset in PAGES_BY_MODEL for model in records.partitions(asset)})
    return {name: [_shown(records, BY_NAME[asset], histories, name) for asset in PAGES_BY_MODEL] for name in names}


def _shown(records: Records, asset: Asset, histories: Mapping[str, lineage.History], partition: str | None = None) -> Shown:
    key = f"{asset.name}/{partition}" if partition else asset.name
    file, title = f"{anchor(key)}.html", f"{asset.title}: {partition}" if partition else asset.title
    made = next((made for made in histories[asset.name].made if made.key == key), None)
    try:
        record = records.find(key)
        if record is None or asset.document is None or asset.document not in record.files:
            return Shown(asset, file, title, partition, made)
        document, plots = _document(record, asset.document)
    except ArtifactCorrupted as error:
        return Shown(asset, file, title, partition, made, problem=str(error))
    return Shown(asset, file, document.title or title, partition, made, document, plots)


def _document(record: Record, name: str) -> tuple[Document, tuple[tuple[str, str], ...]]:
    """The report, and the plots of the artefact that it does not show itself."""
    markdown = record.read(name).decode("utf-8")
    pictures = {file: record.read(file) for file in record.files if file.endswith(".png")}
    rest = [file for file in sorted(pictures) if f"({file})" not in markdown]
    return convert(markdown, pictures), tuple((_words(file), data_uri(pictures[file])) for file in rest)


def _words(file: str) -> str:
    return Path(file).stem.replace("_", " ").capitalize()
