"""The images: their Dockerfiles by a linter and by our own rules, what is in them, and how secrets get into their processes."""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = ("Dockerfile.dagster", "Dockerfile.code")
HEAVY = {"torch", "transformers", "pandas", "pyarrow", "scikit-learn", "wandb", "newsjuice-pipelines"}


def instructions(path: Path) -> list[str]:
    """The instructions of a Dockerfile, each on one line, without comments."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines() if line.strip()]


def stages(path: Path) -> dict[str, list[str]]:
    """The instructions by build stage, each with those of the stage that it builds on."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in instructions(path):
        if line.startswith("FROM "):
            words = line.split()
            current = words[3] if len(words) > 2 else "image"
            found[current] = list(found.get(words[1], []))
        else:
            found[current].append(line)
    return found


def linter() -> str | None:
    beside = Path(sys.executable).parent / "hadolint"
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(linter() is None, reason="hadolint is not installed")
@pytest.mark.parametrize("name", FILES)
def test_the_linter_finds_nothing(name: str, docker: Path) -> None:
    done = subprocess.run([linter() or "", str(docker / name)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "stage"), [("Dockerfile.dagster", "image"), ("Dockerfile.code", "cpu"), ("Dockerfile.code", "cuda")]
)
def test_images_run_as_an_ordinary_user_and_say_whether_they_are_well(name: str, stage: str, docker: Path) -> None:
    image = stages(docker / name)[stage]

    users = [line for line in image if line.startswith("USER ")]
    assert users == ["USER 10001"]
    assert not any(line.startswith(("RUN ", "COPY ")) for line in image[image.index("USER 10001") :])
    assert len([line for line in image if line.startswith("HEALTHCHECK ")]) == 1
    assert 'ENTRYPOINT ["entrypoint"]' in image


@pytest.mark.parametrize("name", FILES)
def test_every_install_is_pinned_by_the_constraints(name: str, docker: Path) -> None:
    installs = re.findall(r"pip install (.*?)(?: &&|$)", "\n".join(instructions(docker / name)), re.MULTILINE)

    assert installs
    for install in installs:
        assert "-c /tmp/constraints.txt" in install or install.endswith("/wheels/*.whl"), install


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_change_of_the_source_leaves_the_layer_of_dependencies_alone(target: str, docker: Path) -> None:
    image = stages(docker / "Dockerfile.code")[target]
    dependencies = next(number for number, line in enumerate(image) if f"-r /requirements/{target}.txt" in line)
    source = next(number for number, line in enumerate(image) if "/wheels/*.whl" in line)

    assert dependencies < source
    assert not any("newsjuice_pipelines" in line for line in image[:source] if line.startswith("COPY "))


@pytest.mark.parametrize("name", FILES)
def test_images_copy_only_files_that_exist(name: str, docker: Path, project: Path) -> None:
    copies = [shlex.split(line)[1:-1] for line in instructions(docker / name) if line.startswith("COPY ")]
    copied = [source for words in copies for source in words if not source.startswith("--")]

    assert copied
    assert [source for source in copied if not (project / source).exists()] == []


@pytest.mark.parametrize("name", FILES)
def test_a_build_sees_what_the_image_copies_and_nothing_else(name: str, docker: Path) -> None:
    from_build = [line for line in instructions(docker / name) if line.startswith("COPY ") and "--from=" not in line]
    copied = {word.removeprefix("./") for line in from_build for word in shlex.split(line)[1:-1] if not word.startswith("--")}
    rules = (docker / f"{name}.dockerignore").read_text(encoding="utf-8").splitlines()

    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert "*" in rules


def test_the_requirements_of_an_image_are_those_of_the_project_with_the_extras(docker: Path, project: Path) -> None:
    def printed(*extras: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(docker / "requirements.py"), *extras]
        return subprocess.run(command, capture_output=True, text=True, cwd=project, check=False)

    wanted = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    done = printed("gcp", "k8s")

    assert done.returncode == 0, done.stderr
    extras = wanted["optional-dependencies"]
    assert set(done.stdout.splitlines()) == {*wanted["dependencies"], *extras["gcp"], *extras["k8s"]}
    assert "has no extra nonsense" in printed("nonsense").stderr


def test_the_code_image_asks_for_extras_that_exist(docker: Path, project: Path) -> None:
    asked = re.findall(r"python requirements\.py ([\w -]+) >", (docker / "Dockerfile.code").read_text())
    there = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert len(asked) == 2
    assert {extra for line in asked for extra in line.split()} <= set(there)


def closure(names: set[str]) -> set[str]:
    """Names of the installed packages that these need, themselves among them."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        asked = waiting.pop()
        if (key := (canonicalize_name(asked.name), frozenset(asked.extras))) in found:
            continue
        found.add(key)
        for needed in map(Requirement, importlib.metadata.requires(asked.name) or []):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in asked.extras or {""}):
                waiting.append(needed)
    return {name for name, _ in found}


@pytest.mark.skipif(importlib.util.find_spec("dagster_docker") is None, reason="dagster-docker is not installed")
def test_the_image_of_web_server_and_daemon_has_no_heavy_package_and_every_one_is_pinned(docker: Path, project: Path) -> None:
    (line,) = [line for line in instructions(docker / "Dockerfile.dagster") if "pip install" in line]
    asked = set(line.partition("-c /tmp/constraints.txt")[2].split())
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (project / "constraints.txt").read_text().splitlines()
        if "==" in line
    }

    assert {"dagster-webserver", "dagster-postgres", "dagster-docker"} <= asked
    needed = closure(asked)
    assert not needed & HEAVY
    assert needed - pinned == set(), "packages that constraints.txt should name"


Entrypoint = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


@pytest.fixture
def entrypoint(docker: Path, secrets: Path) -> Entrypoint:
    """Runs a command as the images do."""

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "SECRETS_FOLDER": str(secrets), **variables}
        script = ["sh", str(docker / "entrypoint.sh"), *command]
        return subprocess.run(script, capture_output=True, text=True, env=environment, check=False)

    return run


def test_a_secret_in_a_file_is_a_variable_of_the_process(entrypoint: Entrypoint, secrets: Path) -> None:
    (secrets / "HF_TOKEN").write_text("it's a $secret `x`\n")

    done = entrypoint("printenv", "HF_TOKEN")

    assert done.stdout == "it's a $secret `x`\n"


def test_a_variable_that_is_set_already_stays(entrypoint: Entrypoint, secrets: Path) -> None:
    (secrets / "HF_TOKEN").write_text("from the file")

    assert entrypoint("printenv", "HF_TOKEN", HF_TOKEN="from the environment").stdout == "from the environment\n"
    assert entrypoint("printenv", "HF_TOKEN", HF_TOKEN="").stdout == "from the file\n"


def test_files_that_are_not_named_like_variables_stay_files(entrypoint: Entrypoint, secrets: Path) -> None:
    (secrets / "google-credentials.json").write_text("{}")
    (secrets / "FOLDER").mkdir()

    done = entrypoint("env")

    assert done.returncode == 0, done.stderr
    assert "google" not in done.stdout
    assert "FOLDER=" not in done.stdout.replace("SECRETS_FOLDER=", "")


def test_without_secrets_the_command_runs_all_the_same(entrypoint: Entrypoint, secrets: Path) -> None:
    secrets.rmdir()

    done = entrypoint("printf", "%s|", "two words", "")

    assert (done.returncode, done.stdout) == (0, "two words||")


def test_the_status_of_the_command_is_that_of_the_container(entrypoint: Entrypoint) -> None:
    assert entrypoint("sh", "-c", "exit 7").returncode == 7


@pytest.mark.skipif(os.getuid() == 0, reason="root can read every file")
def test_a_secret_that_cannot_be_read_stops_the_container_with_its_name(entrypoint: Entrypoint, secrets: Path) -> None:
    (secrets / "HF_TOKEN").write_text("x")
    (secrets / "HF_TOKEN").chmod(0)

    done = entrypoint("true")

    assert done.returncode == 1
    assert "the secret HF_TOKEN cannot be read" in done.stderr
