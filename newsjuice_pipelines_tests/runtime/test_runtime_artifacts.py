"""The artefact store: whole or nothing, checked when read, reused when nothing changed, recovered after a crash."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from upath import UPath

from newsjuice_pipelines.runtime.artifacts import (
    ArtifactBusy,
    ArtifactCorrupted,
    ArtifactMissing,
    ArtifactStore,
    DiskFull,
    Draft,
)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache", lock_timeout_s=0.2)


def write_text(text: str):
    def write(draft: Draft) -> dict[str, object]:
        (draft.path / "folder").mkdir()
        (draft.path / "folder" / "data.txt").write_text(text)
        return {"length": len(text)}

    return write


def test_a_published_artifact_opens_with_its_files_facts_and_recipe(store: ArtifactStore) -> None:
    store.publish("thing", {"seed": 1}, write_text("hello"))

    opened = store.open("thing")

    assert (opened.path / "folder" / "data.txt").read_text() == "hello"
    assert opened.facts == {"length": 5}
    assert opened.recipe == {"seed": 1}


def test_the_manifest_names_hashes_versions_and_git_state(store: ArtifactStore) -> None:
    path = store.publish("thing", {"seed": 1}, write_text("hello")).path

    manifest = json.loads((path / "manifest.json").read_text())

    assert manifest["files"]["folder/data.txt"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert {"git", "packages", "device"} <= set(manifest["environment"])
    assert "dagster" in manifest["environment"]["packages"]


def test_the_same_recipe_is_not_written_again(store: ArtifactStore) -> None:
    first = store.publish("thing", {"seed": 1}, write_text("hello"))

    second = store.publish("thing", {"seed": 1}, write_text("never written"))

    assert second.reused
    assert second.version == first.version


def test_another_recipe_and_force_are_written(store: ArtifactStore) -> None:
    store.publish("thing", {"seed": 1}, write_text("one"))

    assert store.publish("thing", {"seed": 2}, write_text("two")).facts == {"length": 3}
    assert store.publish("thing", {"seed": 2}, write_text("three"), force=True).facts == {"length": 5}


def test_a_failed_write_leaves_the_version_in_force_and_no_rubbish(store: ArtifactStore, tmp_path: Path) -> None:
    store.publish("thing", {"seed": 1}, write_text("hello"))

    def fail(draft: Draft) -> dict[str, object]:
        (draft.path / "half.txt").write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        store.publish("thing", {"seed": 2}, fail)

    assert store.open("thing").facts == {"length": 5}
    assert not list((tmp_path / "artifacts" / "thing").glob(".tmp-*"))


def test_scratch_survives_a_failure_and_is_gone_after_success(store: ArtifactStore) -> None:
    seen: list[Path] = []

    def fail(draft: Draft) -> dict[str, object]:
        (draft.scratch / "checkpoint").write_text("step 7")
        raise RuntimeError("killed")

    def resume(draft: Draft) -> dict[str, object]:
        seen.append(draft.scratch)
        return {"resumed_from": (draft.scratch / "checkpoint").read_text()}

    with pytest.raises(RuntimeError):
        store.publish("thing", {"seed": 1}, fail)

    assert store.publish("thing", {"seed": 1}, resume).facts == {"resumed_from": "step 7"}
    assert not seen[0].exists()


def test_a_missing_artifact_names_the_asset_to_materialise(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="materialise the asset 'thing' first"):
        store.open("thing/2026-09-15")


def test_a_changed_file_is_a_checksum_error_and_the_next_publish_mends_it(store: ArtifactStore) -> None:
    path = store.publish("thing", {"seed": 1}, write_text("hello")).path
    (path / "folder" / "data.txt").write_text("jello")

    with pytest.raises(ArtifactCorrupted, match=r"checksum error in folder/data\.txt"):
        store.open("thing")

    assert not store.publish("thing", {"seed": 1}, write_text("hello")).reused
    assert (store.open("thing").path / "folder" / "data.txt").read_text() == "hello"


@pytest.mark.parametrize("damage", ["manifest.json", "folder/data.txt", "facts.json"])
def test_a_deleted_file_is_noticed(store: ArtifactStore, damage: str) -> None:
    path = store.publish("thing", {"seed": 1}, write_text("hello")).path
    (path / damage).unlink()

    with pytest.raises(ArtifactCorrupted, match="materialise 'thing' again"):
        store.open("thing")


def test_only_the_last_versions_are_kept(store: ArtifactStore, tmp_path: Path) -> None:
    for seed in range(6):
        store.publish("thing", {"seed": seed}, write_text(str(seed)))

    assert len([entry for entry in (tmp_path / "artifacts" / "thing").iterdir() if entry.is_dir()]) == 3


def test_partitions_lists_those_that_were_published(store: ArtifactStore) -> None:
    for day in ("2026-09-16", "2026-09-15"):
        store.publish(f"thing/{day}", {}, write_text(day))

    assert store.partitions("thing") == ["2026-09-15", "2026-09-16"]
    assert store.partitions("other") == []


def publish_slowly(root: str, cache: str, started: str) -> None:
    def write(draft: Draft) -> dict[str, object]:
        (draft.path / "half.txt").write_text("half")
        Path(started).touch()
        time.sleep(60)
        return {}

    ArtifactStore(root, Path(cache)).publish("thing", {"seed": 1}, write)


@pytest.fixture
def slow_writer(store: ArtifactStore, tmp_path: Path):
    started = tmp_path / "started"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=publish_slowly, args=(store.root, str(store.cache), str(started)))
    process.start()
    while not started.exists():
        time.sleep(0.02)
    yield process
    process.kill()
    process.join()


def test_a_second_writer_of_the_same_artifact_fails_with_a_clear_error(store: ArtifactStore, slow_writer) -> None:
    with pytest.raises(ArtifactBusy, match="another process is writing thing"):
        store.publish("thing", {"seed": 2}, write_text("hello"))


def test_a_killed_writer_leaves_nothing_that_is_read_and_the_next_one_cleans_up(
    store: ArtifactStore, slow_writer, tmp_path: Path
) -> None:
    os.kill(slow_writer.pid, signal.SIGKILL)
    slow_writer.join()
    assert list((tmp_path / "artifacts" / "thing").glob(".tmp-*")), "the killed writer should leave a half-written folder"
    with pytest.raises(ArtifactMissing):
        store.open("thing")

    store.publish("thing", {"seed": 1}, write_text("whole"))

    assert store.open("thing").facts == {"length": 5}
    assert not list((tmp_path / "artifacts" / "thing").glob(".tmp-*"))


@pytest.fixture
def small_disk(tmp_path: Path):
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount_point)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield mount_point
    subprocess.run(["umount", "-l", str(mount_point)], check=True)


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_in_force(small_disk: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(small_disk / "artifacts"), tmp_path / "cache")
    store.publish("thing", {"seed": 1}, write_text("hello"))

    with pytest.raises(DiskFull, match="no room left for thing"):
        store.publish("thing", {"seed": 2}, write_text("x" * 2**21))

    assert store.open("thing").facts == {"length": 5}
    assert store.publish("thing", {"seed": 2}, write_text("smaller")).facts == {"length": 7}


def test_the_same_code_writes_and_reads_an_fsspec_uri(tmp_path: Path) -> None:
    writer = ArtifactStore("memory://bucket/artifacts", tmp_path / "one")
    reader = ArtifactStore("memory://bucket/artifacts", tmp_path / "two")

    published = writer.publish("thing/2026-09-15", {"seed": 1}, write_text("hello"))
    opened = reader.open("thing/2026-09-15")

    assert opened.version == published.version
    assert (opened.path / "folder" / "data.txt").read_text() == "hello"
    assert str(opened.path).startswith(str(tmp_path / "two"))
    assert reader.partitions("thing") == ["2026-09-15"]
    assert reader.publish("thing/2026-09-15", {"seed": 1}, write_text("never written")).reused


def test_a_damaged_copy_of_a_remote_artifact_is_fetched_again(tmp_path: Path) -> None:
    store = ArtifactStore("memory://bucket/copies", tmp_path / "cache")
    path = store.publish("thing", {"seed": 1}, write_text("hello")).path
    (path / "folder" / "data.txt").write_text("jello")

    assert (store.open("thing").path / "folder" / "data.txt").read_text() == "hello"


def test_a_damaged_remote_artifact_is_noticed_and_mended_by_publishing_again(tmp_path: Path) -> None:
    store = ArtifactStore("memory://bucket/damaged", tmp_path / "cache")
    version = store.publish("thing", {"seed": 1}, write_text("hello")).version
    UPath(f"memory://bucket/damaged/thing/{version}/folder/data.txt").write_text("jello")
    shutil.rmtree(tmp_path / "cache" / "copies")

    with pytest.raises(ArtifactCorrupted, match="checksum error"):
        store.open("thing")
    store.publish("thing", {"seed": 1}, write_text("hello"))
    assert (store.open("thing").path / "folder" / "data.txt").read_text() == "hello"


def test_a_full_disk_is_recognised_in_the_errors_of_other_libraries(store: ArtifactStore) -> None:
    def write(draft: Draft) -> dict[str, object]:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFull, match="no room left"):
        store.publish("thing", {"seed": 1}, write)
