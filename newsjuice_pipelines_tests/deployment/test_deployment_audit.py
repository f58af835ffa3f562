"""The audit of the dependencies: it fails for a vulnerability, and only says so where nothing could be looked up."""

import subprocess
from pathlib import Path

import pytest

FOUND = "Found 2 known vulnerabilities in 1 package"


def audited(project: Path, tool: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(project / ".ci" / "audit"), str(tool)], capture_output=True, text=True, check=False)


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    return tmp_path / "pip-audit"


def stand_in(tool: Path, says: str, status: int) -> None:
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tool}.asked\necho "{says}"\nexit {status}\n')
    tool.chmod(0o755)


def test_a_known_vulnerability_fails_the_audit_and_is_shown(project: Path, tool: Path) -> None:
    stand_in(tool, FOUND, 1)

    done = audited(project, tool)

    assert done.returncode == 1
    assert FOUND in done.stdout


def test_every_pinned_package_is_looked_up(project: Path, tool: Path) -> None:
    stand_in(tool, "No known vulnerabilities found", 0)

    done = audited(project, tool)

    assert (done.returncode, done.stdout) == (0, "No known vulnerabilities found\n")
    assert "--requirement constraints.txt" in Path(f"{tool}.asked").read_text()


def test_without_a_network_it_says_that_nothing_was_audited(project: Path, tool: Path) -> None:
    stand_in(tool, "ERROR:pip_audit._cli:Could not connect to PyPI", 1)

    done = audited(project, tool)

    assert done.returncode == 0
    assert done.stdout.startswith("not audited: the vulnerability service cannot be reached")


def test_without_the_tool_it_says_how_to_get_it(project: Path, tool: Path) -> None:
    done = audited(project, tool)

    assert (done.returncode, done.stdout) == (0, f"not audited: {tool} is not installed (pip install pip-audit)\n")
