"""Tracking never costs a run."""

import logging
from pathlib import Path

import pytest

from newsjuice_pipelines.runtime.tracking import TrackedRun, Tracker


def test_an_offline_run_is_written_below_its_folder(tmp_path: Path) -> None:
    with Tracker("offline", tmp_path).run("adapter", {"rank": 16}) as run:
        run.log({"loss": 1.5})
        assert run.active
        assert run.url is None
        assert run.folder is not None

    assert (tmp_path / "wandb") == Path(run.folder).parent
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_disabled_tracker_does_nothing(tmp_path: Path) -> None:
    with Tracker("disabled", tmp_path).run("adapter", {}) as run:
        run.log({"loss": 1.5})

    assert not run.active
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")

    with caplog.at_level(logging.WARNING), Tracker("offline", tmp_path / "file").run("adapter", {}) as run:
        run.log({"loss": 1.5})

    assert not run.active
    assert "adapter is not tracked" in caplog.text


def test_a_tracker_that_breaks_while_logging_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        url = None

        def log(self, values: dict[str, float]) -> None:
            raise OSError("no network")

    run = TrackedRun(Broken())

    with caplog.at_level(logging.WARNING):
        run.log({"loss": 1.0})
        run.log({"loss": 0.9})

    assert caplog.text.count("tracking stopped: OSError: no network") == 1


def test_an_error_of_the_work_comes_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Tracker("disabled", tmp_path).run("adapter", {}):
        _ = 1 / 0
