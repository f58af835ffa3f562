"""The artefact store and the messages of Pipes on a real object store, where every machine has a disk of its own besides."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from newsjuice_pipelines.benchmarks.object_store_server import ObjectStore, object_store
from newsjuice_pipelines.remote.messages import ObjectMessageChannel, last_chunk
from newsjuice_pipelines.resources.object_pipes import ObjectContextInjector, ObjectMessageReader
from newsjuice_pipelines.runtime.artifacts import ArtifactBusy, ArtifactCorrupted, ArtifactMissing, ArtifactStore, Draft

DEADLINE_S = 300


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    pytest.importorskip("moto", reason="the object store of these tests is moto's server: pip install 'moto[server]' s3fs")
    pytest.importorskip("s3fs", reason="the tests reach the object store by s3fs: pip install s3fs")
    with object_store() as store:
        yield store


@pytest.fixture
def root(server: ObjectStore, tmp_path: Path) -> str:
    """An artefact root of its own."""
    return server.uri(tmp_path.name)


@pytest.fixture
def machine(root: str, tmp_path: Path) -> Callable[..., ArtifactStore]:
    """The store as a machine sees it: the root is shared, the cache is its own disk."""
    return lambda name="one": ArtifactStore(root, tmp_path / name, lock_timeout_s=0.2)


def write_text(text: str) -> Callable[[Draft], dict[str, Any]]:
    def write(draft: Draft) -> dict[str, Any]:
        (draft.path / "folder").mkdir()
        (draft.path / "folder" / "data.txt").write_text(text)
        return {"length": len(text)}

    return write


def test_what_one_machine_publishes_another_opens_whole(machine: Callable[..., ArtifactStore], root: str) -> None:
    published = machine("one").publish("thing/2026-09-15", {"seed": 1}, write_text("hello"))

    opened = machine("two").open("thing/2026-09-15")

    assert (opened.version, opened.facts, opened.recipe) == (published.version, {"length": 5}, {"seed": 1})
    assert (opened.path / "folder" / "data.txt").read_text() == "hello"
    assert opened.uri == f"{root}/thing/2026-09-15/{opened.version}"
    assert machine("two").partitions("thing") == ["2026-09-15"]


def test_what_was_not_published_is_missing(machine: Callable[..., ArtifactStore]) -> None:
    with pytest.raises(ArtifactMissing, match="materialise the asset 'thing' first"):
        machine().open("thing")

    assert machine().partitions("thing") == []


def test_the_same_recipe_is_not_written_again_on_any_machine(machine: Callable[..., ArtifactStore]) -> None:
    first = machine("one").publish("thing", {"seed": 1}, write_text("hello"))

    second = machine("two").publish("thing", {"seed": 1}, write_text("never written"))

    assert second.reused
    assert second.version == first.version


def test_another_recipe_is_in_force_on_every_machine_at_once(machine: Callable[..., ArtifactStore]) -> None:
    one, two = machine("one"), machine("two")
    one.publish("thing", {"seed": 1}, write_text("one"))
    assert two.open("thing").facts == {"length": 3}

    one.publish("thing", {"seed": 2}, write_text("seven"))

    assert two.open("thing").facts == {"length": 5}


def test_a_changed_object_is_a_checksum_error_and_the_next_publish_mends_it(
    machine: Callable[..., ArtifactStore], root: str
) -> None:
    version = machine("one").publish("thing", {"seed": 1}, write_text("hello")).version
    UPath(f"{root}/thing/{version}/folder/data.txt").write_text("jello")

    with pytest.raises(ArtifactCorrupted, match=r"checksum error in folder/data\.txt"):
        machine("two").open("thing")

    assert not machine("two").publish("thing", {"seed": 1}, write_text("hello")).reused
    assert (machine("three").open("thing").path / "folder" / "data.txt").read_text() == "hello"


def test_a_damaged_copy_on_one_machine_is_fetched_again(machine: Callable[..., ArtifactStore]) -> None:
    path = machine().publish("thing", {"seed": 1}, write_text("hello")).path
    (path / "folder" / "data.txt").write_text("jello")

    assert (machine().open("thing").path / "folder" / "data.txt").read_text() == "hello"


def test_no_version_is_removed_so_that_every_machine_can_finish_what_it_reads(machine: Callable[..., ArtifactStore]) -> None:
    versions = [machine("one").publish("thing", {"seed": seed}, write_text("x" * seed)).version for seed in range(1, 6)]

    assert [machine("two").open("thing", version).facts["length"] for version in versions] == [1, 2, 3, 4, 5]


def test_an_earlier_version_can_be_put_in_force(machine: Callable[..., ArtifactStore]) -> None:
    first = machine("one").publish("thing", {"seed": 1}, write_text("one"))
    machine("one").publish("thing", {"seed": 2}, write_text("seven"))

    machine("one").put_in_force("thing", first.version)

    assert machine("two").open("thing").version == first.version


def test_a_write_that_fails_leaves_what_was_in_force_and_no_object(machine: Callable[..., ArtifactStore], root: str) -> None:
    machine("one").publish("thing", {"seed": 1}, write_text("hello"))
    before = sorted(str(path) for path in UPath(f"{root}/thing").rglob("*"))

    def fail(draft: Draft) -> dict[str, Any]:
        (draft.path / "half.txt").write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        machine("one").publish("thing", {"seed": 2}, fail)

    assert machine("two").open("thing").facts == {"length": 5}
    assert sorted(str(path) for path in UPath(f"{root}/thing").rglob("*")) == before


def publish_when_told(root: str, cache: str, text: str, started: str, go_on: str) -> None:
    """What the writer of another process does: it waits in the middle of its work."""

    def write(draft: Draft) -> dict[str, Any]:
        (draft.path / "data.txt").write_text(text)
        Path(started).touch()
        deadline = time.monotonic() + DEADLINE_S
        while not Path(go_on).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return {"text": text}

    ArtifactStore(root, Path(cache), lock_timeout_s=0.2).publish("thing", {"text": text}, write)


Start = Callable[..., multiprocessing.Process]


@pytest.fixture
def start(root: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a writer in a process of its own, and returns when it is in the middle of its work."""
    context = multiprocessing.get_context("spawn")
    processes: list[Any] = []

    def start(cache: str, text: str) -> Any:
        begun = tmp_path / f"{text} has begun"
        arguments = (root, str(tmp_path / cache), text, str(begun), str(tmp_path / "go on"))
        process = context.Process(target=publish_when_told, args=arguments)
        process.start()
        processes.append(process)
        deadline = time.monotonic() + DEADLINE_S
        while not begun.exists():
            assert process.is_alive(), f"the writer of {text} ended with {process.exitcode}"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_writers_on_two_machines_leave_two_whole_versions_and_one_in_force(
    start: Start, machine: Callable[..., ArtifactStore], tmp_path: Path, root: str
) -> None:
    writers = [start("one", "first"), start("two", "second")]

    (tmp_path / "go on").touch()
    for writer in writers:
        writer.join(DEADLINE_S)

    assert [writer.exitcode for writer in writers] == [0, 0]
    versions = [path.name for path in UPath(f"{root}/thing").iterdir() if path.name != "CURRENT"]
    assert {machine("three").open("thing", version).facts["text"] for version in versions} == {"first", "second"}
    assert machine("three").open("thing").version in versions


def test_a_second_writer_on_one_machine_fails_with_a_clear_error(start: Start, machine: Callable[..., ArtifactStore]) -> None:
    start("one", "first")

    with pytest.raises(ArtifactBusy, match="another process is writing thing"):
        machine("one").publish("thing", {"text": "second"}, write_text("second"))


def test_a_killed_writer_leaves_nothing_that_is_read(
    start: Start, machine: Callable[..., ArtifactStore], root: str, tmp_path: Path
) -> None:
    writer = start("one", "first")
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()

    with pytest.raises(ArtifactMissing):
        machine("two").open("thing")
    machine("one").publish("thing", {"text": "second"}, write_text("second"))
    assert machine("two").open("thing").facts == {"length": 6}
    assert not list((tmp_path / "one" / "staging").rglob("data.txt")), "the half of the killed writer should be gone"


def test_a_copy_that_was_lost_is_fetched_again(machine: Callable[..., ArtifactStore], tmp_path: Path) -> None:
    machine("one").publish("thing", {"seed": 1}, write_text("hello"))
    machine("two").open("thing")
    shutil.rmtree(tmp_path / "two")

    assert machine("two").open("thing").facts == {"length": 5}


class Heard:
    """What a session hears, in place of Dagster's handler."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def handle_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def report_pipes_framework_exception(self, origin: str, exc_info: Any) -> None:
        raise AssertionError(origin) from exc_info[1]

    @property
    def said(self) -> list[Any]:
        return [message["params"].get("say") or message["method"] for message in self.messages]


def message(method: str, **params: Any) -> dict[str, Any]:
    return {"__dagster_pipes_version": "0.1", "method": method, "params": params}


def send(uri: str, *messages: dict[str, Any]) -> None:
    """What a container does from its start to its end."""
    channel = ObjectMessageChannel(uri, chunk_s=60)
    with channel.uploading():
        for each in messages:
            channel.write_message(each)


def test_messages_arrive_in_order_and_to_the_last_one(root: str) -> None:
    heard, reader = Heard(), ObjectMessageReader(root, poll_s=0.05)
    with reader.read_messages(heard):
        channel = ObjectMessageChannel(root, chunk_s=0.05)
        with channel.uploading():
            channel.write_message(message("opened"))
            for number in range(1, 200):
                channel.write_message(message("log", say=number))
                time.sleep(0.001)  # so that there are several chunks
            channel.write_message(message("closed"))

    assert heard.said == ["opened", *range(1, 200), "closed"]


def test_a_container_that_starts_again_goes_on_behind_its_first_try(root: str) -> None:
    heard, reader = Heard(), ObjectMessageReader(root, poll_s=0.05)
    with reader.read_messages(heard):
        send(root, message("opened"), message("closed", exception={"message": "ValueError: first try"}))
        send(root, message("opened"), message("log", say="better"), message("closed"))

    assert heard.said == ["opened", "opened", "better", "closed"]
    assert reader.exception is None
    assert last_chunk(UPath(root)) == 2


def test_a_reader_that_comes_later_hears_everything(root: str) -> None:
    send(root, message("opened"), message("closed", exception={"message": "ValueError: no rows"}))

    heard, reader = Heard(), ObjectMessageReader(root, poll_s=0.05)
    with reader.read_messages(heard):
        pass

    assert heard.said == ["opened", "closed"]
    assert reader.exception == {"message": "ValueError: no rows"}


def test_the_parameters_suit_the_writers_of_dagster_pipes_too(root: str) -> None:
    bucket, _, key = root.removeprefix("s3://").partition("/")

    with (
        ObjectContextInjector(root).inject_context({"run_id": "r"}) as context,
        ObjectMessageReader(root).read_messages(Heard()) as messages,
    ):
        assert json.loads(UPath(context["context_uri"]).read_text()) == {"run_id": "r"}
        assert (context["bucket"], context["key"]) == (bucket, f"{key}/context.json")
        assert (messages["bucket"], messages["key_prefix"]) == (bucket, key)
