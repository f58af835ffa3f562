"""The Compose files and Dagster's instance file: valid by their schemas, of one mind with each other, and free of secrets."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from newsjuice_pipelines.automation.op_tags import GPU_POOL, VERTEX_POOL
from newsjuice_pipelines.settings import Settings

FILES = ("docker-compose.yaml", "docker-compose.gpu.yaml", "dagster.yaml", "workspace.yaml")
# Run by our images, told apart by their commands.
CODE, DAGSTER = {"migrate", "code"}, {"webserver", "daemon"}
# The image sets the first; the second is about the embedded database, which containers have none of.
NOT_PASSED = {"NEWSJUICE_HOME", "NEWSJUICE_DEMO"}

Composed = Callable[..., dict[str, Any]]


def is_secret(name: str) -> bool:
    return SecretStr in getattr(Settings.model_fields[name].annotation, "__args__", ())


def variables(secret: bool) -> set[str]:
    return {f"NEWSJUICE_{name.upper()}" for name in Settings.model_fields if is_secret(name) == secret}


@pytest.mark.parametrize("name", FILES)
def test_no_key_stands_twice(name: str, docker: Path, read_yaml: Callable[[str], Any]) -> None:
    assert read_yaml((docker / name).read_text(encoding="utf-8"))


def test_the_strict_reader_refuses_a_second_key(read_yaml: Callable[[str], Any]) -> None:
    with pytest.raises(yaml.YAMLError, match=r"stand twice: \['code'\]"):
        read_yaml("services:\n  code: {image: x}\n  code:\n")


def checked_by_schema(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(importlib.util.find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
@pytest.mark.parametrize("name", ["docker-compose.yaml", "docker-compose.gpu.yaml"])
def test_compose_files_are_valid_by_the_compose_specification(name: str, composed: Composed, tmp_path: Path) -> None:
    content = composed(name)
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump(content))
    bad.write_text(yaml.safe_dump({**content, "services": {"code": {"image": "x", "healthchekc": {}}}}))

    done = checked_by_schema(good)

    assert done.returncode == 0, done.stdout
    assert checked_by_schema(bad).returncode == 1, "the schema should refuse a service with an unknown key"


def test_every_service_that_is_waited_for_is_healthy_or_done_first(composed: Composed, docker: Path) -> None:
    services = composed()["services"]
    images = {name: "Dockerfile.code" if name in CODE else "Dockerfile.dagster" for name in CODE | DAGSTER}
    checked = {
        name
        for name, service in services.items()
        if "test" in service.get("healthcheck", {})
        or ("healthcheck" not in service and name in images and "\nHEALTHCHECK" in (docker / images[name]).read_text())
    }

    assert set(services) == {"postgres"} | CODE | DAGSTER
    assert checked == set(services) - {"migrate"}
    assert services["migrate"]["restart"] == "no"
    for service in services.values():
        for name, waiting in service.get("depends_on", {}).items():
            assert waiting["condition"] == ("service_completed_successfully" if name == "migrate" else "service_healthy")
            assert name == "migrate" or name in checked


def test_code_starts_on_a_migrated_database_and_dagster_on_code(composed: Composed) -> None:
    services = composed()["services"]

    assert set(services["migrate"]["depends_on"]) == {"postgres"}
    assert set(services["code"]["depends_on"]) == {"migrate"}
    assert set(services["webserver"]["depends_on"]) == set(services["daemon"]["depends_on"]) == {"code"}


def test_migrations_bring_both_schemas_up_to_date_and_open_every_pool(composed: Composed) -> None:
    (_, _, script) = composed(NEWSJUICE_GPU_SLOTS="3")["services"]["migrate"]["command"]

    assert script.splitlines() == [
        "dagster instance migrate",
        f'dagster instance concurrency set {GPU_POOL} "3"',
        f"dagster instance concurrency set {VERTEX_POOL} 1",
        "newsjuice migrate",
    ]


def test_services_that_are_ours_run_without_privileges(composed: Composed) -> None:
    for name, service in composed()["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "postgres":
            assert service["cap_drop"] == ["ALL"], name
        assert "privileged" not in service, name


def test_the_only_open_port_is_the_web_server_on_loopback(composed: Composed) -> None:
    ports = {name: service["ports"] for name, service in composed()["services"].items() if "ports" in service}

    assert ports == {"webserver": ["127.0.0.1:3000:3000"]}


def test_every_variable_of_compose_is_in_the_example_and_the_other_way_round(
    docker: Path, example_variables: dict[str, str]
) -> None:
    import re

    texts = [path.read_text(encoding="utf-8") for path in docker.glob("docker-compose*.yaml")]
    used = {name for text in texts for name in re.findall(r"\$\{(\w+)", text)}

    assert used == set(example_variables)


def test_every_setting_that_is_no_secret_reaches_the_containers_of_code_and_of_runs(composed: Composed, docker: Path) -> None:
    services = composed()["services"]
    launcher = yaml.safe_load((docker / "dagster.yaml").read_text())["run_launcher"]["config"]

    passed = {name for name in services["code"]["environment"] if not name.startswith("DAGSTER_")}
    assert passed == (variables(secret=False) - NOT_PASSED) | {"GOOGLE_APPLICATION_CREDENTIALS"}
    assert set(services["migrate"]["environment"]) == set(services["daemon"]["environment"]) == passed
    assert set(launcher["env_vars"]) == passed, "the daemon hands its settings on to the containers of runs"


def test_no_secret_is_a_variable_of_compose(composed: Composed, example_variables: dict[str, str]) -> None:
    secret = {*variables(secret=True), "WANDB_API_KEY", "HF_TOKEN", "DAGSTER_POSTGRES_URL", "POSTGRES_PASSWORD"}
    passed = {name for service in composed()["services"].values() for name in service.get("environment", {})}

    assert not secret & (passed | set(example_variables))


def test_web_server_and_daemon_get_one_secret_and_code_the_folder(composed: Composed) -> None:
    services = composed(NEWSJUICE_SECRETS="/secret/place")["services"]

    for name in DAGSTER:
        assert services[name]["secrets"] == ["DAGSTER_POSTGRES_URL"]
        assert not any("/secret/place" in volume for volume in services[name]["volumes"])
    for name in CODE:
        assert "/secret/place:/run/secrets:ro" in services[name]["volumes"]
    assert services["postgres"]["secrets"] == ["POSTGRES_PASSWORD"]


def test_variables_left_empty_are_as_if_they_were_not_set(
    example_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in variables(secret=True) | variables(secret=False):
        monkeypatch.delenv(name, raising=False)
    unset = Settings()
    for name, value in example_variables.items():
        if name.startswith("NEWSJUICE_") and not value:
            monkeypatch.setenv(name, "")

    assert Settings() == unset


def test_runs_get_the_volumes_and_secrets_of_the_code_server(composed: Composed) -> None:
    content = composed(NEWSJUICE_SECRETS="/secret/place")
    code = content["services"]["code"]
    context = json.loads(code["environment"]["DAGSTER_CONTAINER_CONTEXT"])["docker"]["container_kwargs"]

    names = {f"{name}:": f"{volume['name']}:" for name, volume in content["volumes"].items()}
    volumes = [volume.replace("data:", names["data:"]) if volume.startswith("data:") else volume for volume in code["volumes"]]
    assert context == {"volumes": volumes}
    assert code["environment"]["DAGSTER_CURRENT_IMAGE"] == code["image"]


def test_runs_join_the_network_on_which_postgres_is(composed: Composed, docker: Path) -> None:
    content = composed()
    launcher = yaml.safe_load((docker / "dagster.yaml").read_text())["run_launcher"]["config"]

    assert launcher["network"] == content["networks"]["newsjuice"]["name"]
    assert all(service["networks"] == ["newsjuice"] for service in content["services"].values())


def test_the_gpu_file_adds_the_devices_and_the_image_with_cuda_and_nothing_else(composed: Composed) -> None:
    base, added = composed()["services"], composed("docker-compose.gpu.yaml")["services"]
    plain = json.loads(base["code"]["environment"]["DAGSTER_CONTAINER_CONTEXT"])["docker"]["container_kwargs"]
    with_gpu = json.loads(added["code"]["environment"]["DAGSTER_CONTAINER_CONTEXT"])["docker"]["container_kwargs"]

    assert set(added) == CODE
    assert with_gpu == {**plain, "device_requests": [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}]}
    assert {added[name]["build"]["target"] for name in CODE} == {"cuda"}
    assert {added[name]["image"] for name in CODE} == {added["code"]["environment"]["DAGSTER_CURRENT_IMAGE"]}


def test_docker_accepts_what_runs_are_started_with(composed: Composed, docker: Path) -> None:
    container_context = pytest.importorskip("dagster_docker.container_context", reason="dagster-docker is not installed")
    from docker.models.containers import _create_container_args

    launcher = yaml.safe_load((docker / "dagster.yaml").read_text())["run_launcher"]["config"]
    code = composed("docker-compose.gpu.yaml")["services"]["code"]
    of_machine = container_context.DockerContainerContext.create_from_config(
        json.loads(code["environment"]["DAGSTER_CONTAINER_CONTEXT"])
    )
    merged = container_context.DockerContainerContext(container_kwargs=launcher["container_kwargs"]).merge(of_machine)

    arguments = {name: value for name, value in merged.container_kwargs.items() if name != "stop_timeout"}  # the launcher's own
    asked = _create_container_args({**arguments, "image": "x", "command": ["y"], "version": "1.43"})

    host = asked["host_config"]
    assert host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert host["Binds"] == ["newsjuice-data:/data", "/etc/newsjuice/secrets:/run/secrets:ro"]
    assert host["ShmSize"] == 8 * 2**30
    assert host["AutoRemove"]
    assert host["CapDrop"] == ["ALL"]


def test_dagster_accepts_its_instance_file(docker: Path) -> None:
    from dagster._core.instance.config import dagster_instance_config

    config, _ = dagster_instance_config(str(docker))

    assert config["run_monitoring"]["max_resume_run_attempts"] > 0
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
    assert config["run_retries"]["retry_on_asset_or_op_failure"] is False
    assert config["storage"] == {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}


def test_compute_logs_are_on_the_volume_that_all_containers_share(composed: Composed, docker: Path) -> None:
    logs = yaml.safe_load((docker / "dagster.yaml").read_text())["compute_logs"]
    services = composed()["services"]

    assert Path(logs["config"]["base_dir"]).is_relative_to("/data")
    assert all("data:/data" in services[name]["volumes"] for name in CODE | DAGSTER)


def test_the_web_server_and_the_daemon_find_the_code_server(composed: Composed, docker: Path) -> None:
    (location,) = yaml.safe_load((docker / "workspace.yaml").read_text())["load_from"]

    assert location["grpc_server"]["host"] in composed()["services"]
    assert f'"-p", "{location["grpc_server"]["port"]}"' in (docker / "Dockerfile.code").read_text(encoding="utf-8")
