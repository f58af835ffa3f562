"""How much memory is left: the machine's, within the limit of its container."""

from pathlib import Path

import psutil
import pytest

from newsjuice_pipelines.runtime import devices
from newsjuice_pipelines.runtime.devices import free_memory_bytes

MIB = 2**20


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control files of a container with a limit of 100 MiB, of which 90 are in use."""
    (tmp_path / "memory.max").write_text(f"{100 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{90 * MIB}\n")
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    return tmp_path


def test_file_pages_that_the_system_would_give_up_count_as_free(container: Path) -> None:
    (container / "memory.stat").write_text(
        f"anon {20 * MIB}\nfile {70 * MIB}\ninactive_file {60 * MIB}\nactive_file {10 * MIB}\n"
    )

    assert free_memory_bytes("cpu") == 70 * MIB


def test_without_figures_on_pages_all_that_is_in_use_counts(container: Path) -> None:
    assert free_memory_bytes("cpu") == 10 * MIB


def test_more_in_use_than_the_limit_leaves_nothing(container: Path) -> None:
    (container / "memory.current").write_text(f"{101 * MIB}\n")

    assert free_memory_bytes("cpu") == 0


def test_a_container_without_a_limit_has_what_the_machine_has(container: Path) -> None:
    (container / "memory.max").write_text("max\n")

    assert free_memory_bytes("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)
