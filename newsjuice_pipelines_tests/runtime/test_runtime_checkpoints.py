"""Which checkpoint a training goes on from: the newest that is whole."""

import json
from pathlib import Path

import pytest

from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint, repoint_best_checkpoint, start_fresh_unless_same


def save(
    scratch: Path, step: int, weights: str = "model.safetensors", random_numbers: tuple[str, ...] = ("rng_state.pth",)
) -> Path:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir()
    for name in (weights, "optimizer.pt", *random_numbers):
        (folder / name).write_bytes(b"numbers")
    (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    return folder


def test_the_newest_by_step_is_taken_not_by_name(tmp_path: Path) -> None:
    save(tmp_path, 8)
    newest = save(tmp_path, 16, weights="adapter_model.safetensors")

    assert last_whole_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("torn", ["trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_half_written_checkpoint_is_passed_over_and_left_alone(tmp_path: Path, torn: str) -> None:
    whole, half = save(tmp_path, 8), save(tmp_path, 16)
    (half / torn).unlink()

    assert last_whole_checkpoint(tmp_path) == whole
    assert half.exists()


def test_several_processes_need_the_random_numbers_of_each(tmp_path: Path) -> None:
    whole = save(tmp_path, 8, random_numbers=("rng_state_0.pth", "rng_state_1.pth"))
    save(tmp_path, 16, random_numbers=("rng_state_0.pth",))
    save(tmp_path, 24)

    assert last_whole_checkpoint(tmp_path, processes=2) == whole


@pytest.mark.parametrize("moved", [True, False])
def test_the_best_checkpoint_is_found_where_it_was_moved_to_if_it_was(tmp_path: Path, moved: bool) -> None:
    newest = save(tmp_path, 16)
    before = {"best_model_checkpoint": "/elsewhere/checkpoint-8", "global_step": 16}
    (newest / "trainer_state.json").write_text(json.dumps(before), encoding="utf-8")
    if moved:
        save(tmp_path, 8)

    repoint_best_checkpoint(tmp_path, newest)

    after = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    best = str(tmp_path / "checkpoint-8") if moved else "/elsewhere/checkpoint-8"
    assert after == {**before, "best_model_checkpoint": best}
    assert not list(newest.glob("*.partial"))


def test_a_torn_state_is_passed_over(tmp_path: Path) -> None:
    (save(tmp_path, 8) / "trainer_state.json").write_text('{"half', encoding="utf-8")

    assert last_whole_checkpoint(tmp_path) is None


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 8).rename(tmp_path / "checkpoint-best")

    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "missing") is None


def test_checkpoints_of_the_same_run_are_kept(tmp_path: Path) -> None:
    start_fresh_unless_same(tmp_path, {"seed": 1, "data": "a"})
    kept = save(tmp_path, 8)

    start_fresh_unless_same(tmp_path, {"seed": 1, "data": "a"})

    assert last_whole_checkpoint(tmp_path) == kept


@pytest.mark.parametrize("recorded", ['{"seed": 1, "data": "a"}', '{"torn', None])
def test_checkpoints_of_another_or_an_unknown_run_are_deleted(
    tmp_path: Path, recorded: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 8)
    if recorded is not None:
        (tmp_path / "run.json").write_text(recorded, encoding="utf-8")

    with caplog.at_level("INFO"):
        start_fresh_unless_same(tmp_path, {"seed": 1, "data": "b"})

    assert last_whole_checkpoint(tmp_path) is None
    assert "data" in caplog.text
    assert '"data": "b"' in (tmp_path / "run.json").read_text(encoding="utf-8")
