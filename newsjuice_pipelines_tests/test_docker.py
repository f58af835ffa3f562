"""The files of the container set-up: they parse strictly, agree with each other, and name only what exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from newsjuice_pipelines.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
DOCKER = PROJECT / "docker"
YAML_FILES = sorted(DOCKER.glob("*.yaml"))
# Run by the same image, told apart by their commands.
OURS = {"code", "webserver", "daemon"}


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; plain YAML loaders keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"keys that stand twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def strict(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    assert isinstance(content, dict)
    return content


def compose() -> dict[str, Any]:
    return strict(DOCKER / "docker-compose.yaml")


def example_variables() -> dict[str, str]:
    lines = (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in pairs}) == len(pairs), "a variable stands twice"
    return dict(pairs)


def real_settings() -> set[str]:
    return {f"NEWSJUICE_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_no_key_stands_twice_and_none_is_left_empty(path: Path) -> None:
    content = strict(path)

    assert all(service is not None for service in content.get("services", {}).values())


def test_the_strict_loader_refuses_a_second_key() -> None:
    with pytest.raises(yaml.YAMLError, match=r"stand twice: \['code'\]"):
        yaml.load("services:\n  code: {image: x}\n  code:\n", StrictLoader)


def test_every_service_has_an_image_and_restarts() -> None:
    services = compose()["services"]

    assert set(services) == {"postgres", *OURS}
    assert {services[name]["image"] for name in OURS} == {"newsjuice-pipelines"}
    assert services["postgres"]["image"].startswith("pgvector/pgvector:")
    assert all(service["restart"] == "unless-stopped" for service in services.values())


def test_every_service_that_is_waited_for_has_a_health_check() -> None:
    services = compose()["services"]
    checked = {name for name, service in services.items() if "test" in service.get("healthcheck", {})}
    if "HEALTHCHECK" in (DOCKER / "Dockerfile").read_text(encoding="utf-8"):
        checked.add("code")  # the image's own check asks the code server, so the other services bring theirs

    assert checked == set(services)
    for service in services.values():
        for name, waiting in service.get("depends_on", {}).items():
            assert waiting == {"condition": "service_healthy"}
            assert name in checked


def test_the_gpu_file_gives_the_code_server_the_devices() -> None:
    services = strict(DOCKER / "docker-compose.gpu.yaml")["services"]

    assert set(services) == {"code"}, "steps run in the code server"
    (device,) = services["code"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_every_variable_of_compose_is_in_the_example_and_the_other_way_round() -> None:
    used = {
        name
        for path in DOCKER.glob("docker-compose*.yaml")
        for name in re.findall(r"\$\{(\w+)", path.read_text(encoding="utf-8"))
    }

    assert used == set(example_variables())


def test_every_newsjuice_variable_is_a_setting() -> None:
    passed = compose()["services"]["code"]["environment"]

    named = {name for name in {*passed, *example_variables()} if name.startswith("NEWSJUICE_")}
    assert named <= real_settings()


def test_variables_left_empty_are_as_if_they_were_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in real_settings():
        monkeypatch.delenv(name, raising=False)
    unset = Settings()
    for name, value in example_variables().items():
        if name.startswith("NEWSJUICE_") and not value:
            monkeypatch.setenv(name, "")

    assert Settings() == unset


def test_the_credentials_of_google_are_mounted_read_only_and_optional() -> None:
    for name in OURS:
        service = compose()["services"][name]
        mount = "/run/google-credentials.json"
        assert f"${{GOOGLE_APPLICATION_CREDENTIALS:-/dev/null}}:{mount}:ro" in service["volumes"]
        assert service["environment"]["GOOGLE_APPLICATION_CREDENTIALS"] == f"${{GOOGLE_APPLICATION_CREDENTIALS:+{mount}}}"


def test_compute_logs_are_on_a_volume_that_all_containers_share() -> None:
    logs = strict(DOCKER / "dagster.yaml")["compute_logs"]

    assert logs["class"] == "LocalComputeLogManager"
    assert Path(logs["config"]["base_dir"]).is_relative_to("/data")
    assert "data" in compose()["volumes"]
    assert all("data:/data" in compose()["services"][name]["volumes"] for name in OURS)


def test_the_image_copies_only_files_that_exist() -> None:
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in shlex.split(line)[1:-1]]

    assert copied
    assert [source for source in copied if not (PROJECT / source).exists()] == []


def test_the_image_has_the_extras_of_gpu_google_cloud_and_kubernetes() -> None:
    assert "'.[gpu,gcp,k8s]'" in (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_the_web_server_and_the_daemon_find_the_code_server() -> None:
    (location,) = strict(DOCKER / "workspace.yaml")["load_from"]

    assert location["grpc_server"]["host"] in compose()["services"]
    assert f'"-p", "{location["grpc_server"]["port"]}"' in (DOCKER / "Dockerfile").read_text(encoding="utf-8")
