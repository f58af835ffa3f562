"""The site on disk: put in place as a whole, never over something else; the command, and the table of the terminal."""

import webbrowser
from pathlib import Path

import pytest

from newsjuice_pipelines.commands.site import write_site
from newsjuice_pipelines.commands.summary import summary
from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.settings import Settings
from newsjuice_pipelines.site.build import NotOurs, build
from newsjuice_pipelines.site.pages import Site


def test_a_site_replaces_an_earlier_one_as_a_whole(sample: Site, tmp_path: Path) -> None:
    start = build(sample, tmp_path / "site")
    (tmp_path / "site" / "classifier-eval-report-gone.html").write_text("an older page")

    again = build(sample, tmp_path / "site")

    assert again == start == tmp_path / "site" / "index.html"
    assert start.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (tmp_path / "site" / "classifier-eval-report-gone.html").exists()
    assert not list(tmp_path.glob(".tmp-*")), "nothing is left beside it"


def test_a_folder_with_something_else_is_refused_and_untouched(sample: Site, tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("dear")

    with pytest.raises(NotOurs, match="give --site a new folder"):
        build(sample, letters)

    assert [path.name for path in letters.iterdir()] == ["letter.txt"]


def test_a_site_that_cannot_be_built_leaves_the_earlier_one(sample: Site, tmp_path: Path) -> None:
    start = build(sample, tmp_path / "site")
    earlier = start.read_text(encoding="utf-8")
    assert sample.benchmarks
    (sample.benchmarks / "defects.json").write_text("{")

    with pytest.raises(ValueError, match="defects"):
        build(sample, tmp_path / "site")

    assert start.read_text(encoding="utf-8") == earlier


def settings_of(store: ArtifactStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("NEWSJUICE_HOME", str(home))
    monkeypatch.setenv("NEWSJUICE_ARTIFACTS", store.root)
    return Settings()


def test_the_command_writes_below_the_home_and_shows_it_when_asked(
    sample: Site, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: shown.append(url) or True)
    settings = settings_of(store, tmp_path / "home", monkeypatch)

    start = write_site(settings, benchmarks=sample.benchmarks)
    write_site(settings, benchmarks=sample.benchmarks, open_it=True)

    assert start == tmp_path / "home" / "site" / "index.html"
    assert shown == [start.as_uri()]


def test_the_terminal_table_has_the_same_figures_and_the_path_of_each_report(
    sample: Site, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = summary(settings_of(store, tmp_path / "home", monkeypatch))

    assert "do not adopt (1 of 3 criteria passed)" in table
    assert "0.98 s" in table
    assert "40.0% of the test texts, 93.0% of them right" in table
    assert str(store.open("classifier_eval_report/minilm").path / "report.md") in table
    assert "script_quality_report" not in table
