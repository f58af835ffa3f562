"""Checkpoints on the object store: a training goes on where the machine before it was taken away."""

import json
import time
from pathlib import Path

import pytest
from upath import UPath

from newsjuice_pipelines.remote.checkpoints import CheckpointCopies, kept_checkpoints
from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth")


def write_checkpoint(scratch: Path, step: int, *, whole: bool = True) -> Path:
    """A checkpoint as trainings leave it; a half one lacks its last file."""
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"{name} of step {step}")
    if whole:
        (folder / "trainer_state.json").write_text(json.dumps({"step": step}))
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def remote(tmp_path: Path) -> UPath:
    return UPath(f"memory://{tmp_path.name}/checkpoints")


def names(remote: UPath) -> set[str]:
    return {path.name for path in remote.iterdir()}


def test_another_machine_goes_on_from_the_last_whole_checkpoint(scratch: Path, remote: UPath, tmp_path: Path) -> None:
    (scratch / "run.json").write_text("{}")
    write_checkpoint(scratch, 100)
    write_checkpoint(scratch, 200, whole=False)
    CheckpointCopies(scratch, remote).update()

    other = tmp_path / "other"
    other.mkdir()
    with kept_checkpoints(other, remote):
        found = last_whole_checkpoint(other)
        assert found == other / "checkpoint-100"
        assert (found / "optimizer.pt").read_text() == "optimizer.pt of step 100"
        assert (other / "run.json").exists()
        assert not (other / "checkpoint-200").exists()


def test_a_checkpoint_that_the_training_deleted_is_deleted_there_too(scratch: Path, remote: UPath) -> None:
    copies = CheckpointCopies(scratch, remote)
    first = write_checkpoint(scratch, 100)
    (scratch / "best-50.safetensors").write_text("weights")
    copies.update()
    write_checkpoint(scratch, 200)
    for path in first.iterdir():
        path.unlink()
    first.rmdir()

    copies.update()

    assert names(remote) == {"checkpoint-200", "best-50.safetensors"}


def test_nothing_is_copied_twice_unless_it_changed(scratch: Path, remote: UPath) -> None:
    copies = CheckpointCopies(scratch, remote)
    write_checkpoint(scratch, 100)
    copies.update()
    (remote / "checkpoint-100" / "optimizer.pt").write_text("touched")
    (scratch / "checkpoint-100" / "rng_state.pth").write_text("written late, by another process")

    copies.update()

    assert (remote / "checkpoint-100" / "optimizer.pt").read_text() == "touched"
    assert (remote / "checkpoint-100" / "rng_state.pth").read_text() == "written late, by another process"


def test_the_copies_are_gone_when_the_training_has_succeeded(scratch: Path, remote: UPath) -> None:
    write_checkpoint(scratch, 100)
    CheckpointCopies(scratch, remote).update()

    with kept_checkpoints(scratch, remote):
        pass

    assert not remote.exists()


def train_and_fail(scratch: Path, remote: UPath) -> None:
    with kept_checkpoints(scratch, remote, every_s=60.0):
        raise RuntimeError("the machine is going away")


def test_the_copies_stay_when_the_training_has_failed(scratch: Path, remote: UPath) -> None:
    write_checkpoint(scratch, 100)
    CheckpointCopies(scratch, remote).update()

    with pytest.raises(RuntimeError, match="going away"):
        train_and_fail(scratch, remote)

    assert names(remote) == {"checkpoint-100"}


def test_an_object_store_that_is_away_does_not_stop_a_training(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(scratch, 100)
    (scratch.parent / "file").write_text("no folder")
    unreachable = UPath((scratch.parent / "file" / "below").as_uri())

    with kept_checkpoints(scratch, unreachable, every_s=0.01):
        for _ in range(1000):
            if "copied later" in capsys.readouterr().err:
                break
            time.sleep(0.01)
        else:
            pytest.fail("nothing was said about the store")
