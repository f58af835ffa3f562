"""The values for Dagster's Helm chart: known to the chart, and rendered by dagster-k8s into pods that Kubernetes accepts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS
from newsjuice_pipelines.settings import Settings

# What the chart's schema (version 1.13) knows, of the parts that we set.
KNOWN = {
    "": {
        "global", "generatePostgresqlPasswordSecret", "postgresql", "migrate", "dagster-user-deployments", "runLauncher",
        "dagsterWebserver", "dagsterDaemon", "additionalInstanceConfig", "pythonLogs", "computeLogManager", "retention",
        "telemetry", "rabbitmq", "redis", "flower", "ingress",
    },
    "global": {"postgresqlSecretName", "dagsterHome", "serviceAccountName", "celeryConfigSecretName"},
    "postgresql": {
        "enabled", "postgresqlHost", "postgresqlUsername", "postgresqlPassword", "postgresqlDatabase", "postgresqlParams",
        "postgresqlScheme", "image", "service",
    },
    "dagster-user-deployments": {"enabled", "enableSubchart", "imagePullSecrets", "deployments"},
    "runLauncher": {"type", "config"},
    "runLauncher.config": {"k8sRunLauncher", "celeryK8sRunLauncher", "customRunLauncher"},
    "runLauncher.config.k8sRunLauncher": {
        "image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile", "envConfigMaps", "envSecrets",
        "envVars", "volumeMounts", "volumes", "labels", "failPodOnRunFailure", "resources", "schedulerName", "securityContext",
        "runK8sConfig",
    },
    "runLauncher.config.k8sRunLauncher.runK8sConfig": {
        "containerConfig", "podSpecConfig", "podTemplateSpecMetadata", "jobSpecConfig", "jobMetadata",
    },
    "dagsterWebserver": {
        "replicaCount", "image", "nameOverride", "pathPrefix", "service", "workspace", "env", "envConfigMaps", "envSecrets",
        "deploymentLabels", "labels", "nodeSelector", "affinity", "tolerations", "podSecurityContext", "securityContext",
        "resources", "readinessProbe", "livenessProbe", "startupProbe", "annotations", "enableReadOnly", "dbStatementTimeout",
        "dbPoolRecycle", "logLevel", "schedulerName", "volumeMounts", "volumes",
    },
    "dagsterDaemon": {
        "enabled", "image", "runCoordinator", "heartbeatTolerance", "env", "envConfigMaps", "envSecrets", "deploymentLabels",
        "labels", "nodeSelector", "affinity", "tolerations", "podSecurityContext", "securityContext", "resources",
        "livenessProbe", "readinessProbe", "startupProbe", "annotations", "runMonitoring", "runRetries", "sensors", "schedules",
        "schedulerName", "volumeMounts", "volumes",
    },
    "dagsterDaemon.runMonitoring": {
        "enabled", "startTimeoutSeconds", "cancelTimeoutSeconds", "maxResumeRunAttempts", "pollIntervalSeconds",
        "freeSlotsAfterRunEndSeconds",
    },
    "dagsterDaemon.runCoordinator.config.queuedRunCoordinator": {
        "maxConcurrentRuns", "tagConcurrencyLimits", "dequeueIntervalSeconds", "dequeueNumWorkers", "dequeueUseThreads",
    },
    "retention.schedule.purgeAfterDays": {"skipped", "success", "failure", "started"},
}  # fmt: skip
DEPLOYMENT = {
    "name", "image", "dagsterApiGrpcArgs", "codeServerArgs", "includeConfigInLaunchedRuns", "port", "env", "envConfigMaps",
    "envSecrets", "annotations", "nodeSelector", "affinity", "tolerations", "podSecurityContext", "securityContext", "resources",
    "livenessProbe", "readinessProbe", "startupProbe", "labels", "volumeMounts", "volumes", "schedulerName",
}  # fmt: skip


@pytest.fixture(scope="module")
def values(docker: Path, read_yaml: Callable[[str], Any]) -> dict[str, Any]:
    return read_yaml((docker / "kubernetes" / "values.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def deployment(values: dict[str, Any]) -> dict[str, Any]:
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    return deployment


@pytest.mark.parametrize("place", KNOWN)
def test_every_key_is_one_that_the_chart_knows(place: str, values: dict[str, Any]) -> None:
    found: Any = values
    for part in place.split(".") if place else ():
        found = found[part]

    assert set(found) - KNOWN[place] == set()


def test_every_key_of_the_deployment_is_one_that_the_chart_knows(deployment: dict[str, Any]) -> None:
    assert set(deployment) - DEPLOYMENT == set()


def test_every_variable_is_a_setting_and_no_secret_is_among_them(deployment: dict[str, Any]) -> None:
    named = {name for name in deployment["env"] if name.startswith("NEWSJUICE_")}

    assert named <= {f"NEWSJUICE_{name.upper()}" for name in Settings.model_fields}
    assert not named & {"NEWSJUICE_DATABASE_URL", "NEWSJUICE_LEDGER_URL"}
    assert deployment["envSecrets"] == [{"name": "newsjuice"}]


def test_the_settings_of_the_deployment_are_valid(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in deployment["env"].items():
        assert isinstance(value, str), name
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.executor == "kubernetes"
    assert "://" in settings.artifact_root, "pods share no disk"


def instance_config(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart makes of the daemon's values and of the rest of the instance."""
    monitoring = values["dagsterDaemon"]["runMonitoring"]
    return {
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "python_logs": {"managed_python_loggers": values["pythonLogs"]["managedPythonLoggers"]},
        **values["additionalInstanceConfig"],
    }


def test_dagster_accepts_the_instance_and_it_is_of_one_mind_with_docker(
    values: dict[str, Any], docker: Path, tmp_path: Path
) -> None:
    from dagster._core.instance.config import dagster_instance_config

    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance_config(values)))
    config, _ = dagster_instance_config(str(tmp_path))
    on_docker = yaml.safe_load((docker / "dagster.yaml").read_text())

    assert config["concurrency"]["pools"] == on_docker["concurrency"]["pools"]
    assert config["run_retries"] == on_docker["run_retries"]
    assert not values["dagsterDaemon"]["runRetries"]["enabled"], "the chart would write a second `run_retries`"
    for name in ("max_resume_run_attempts", "free_slots_after_run_end_seconds", "cancel_timeout_seconds"):
        assert config["run_monitoring"][name] == on_docker["run_monitoring"][name]


@pytest.fixture(scope="module")
def pod(values: dict[str, Any], deployment: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Renders the job of a step with these tags, as the launcher, the deployment and dagster-k8s make it of each other."""
    kubernetes = pytest.importorskip("kubernetes", reason="dagster-k8s is not installed")
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    names = {
        "containerConfig": "container_config",
        "podSpecConfig": "pod_spec_config",
        "jobSpecConfig": "job_spec_config",
    }
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]

    def render(tags: dict[str, Any]) -> Any:
        of_launcher = K8sContainerContext(
            run_k8s_config=UserDefinedDagsterK8sConfig.from_dict({names[key]: value for key, value in launcher.items()})
        )
        of_deployment = K8sContainerContext(
            env_secrets=[secret["name"] for secret in deployment["envSecrets"]],
            volumes=deployment["volumes"],
            volume_mounts=deployment["volumeMounts"],
            resources=deployment["resources"],
        )
        of_step = K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(tags))
        merged = of_launcher.merge(of_deployment).merge(of_step).run_k8s_config
        config = DagsterK8sJobConfig(job_image="registry/newsjuice-code:1", dagster_home="/opt/dagster/dagster_home")
        job = construct_dagster_k8s_job(config, ["dagster", "api", "execute_step"], "step", merged)
        return kubernetes.client.ApiClient().sanitize_for_serialization(job)["spec"]["template"]["spec"]

    return render


def test_the_pod_of_a_light_step_has_the_secrets_the_scratch_disk_and_no_privileges(pod: Callable[..., Any]) -> None:
    spec = pod({})
    (container,) = spec["containers"]

    assert container["envFrom"] == [{"secretRef": {"name": "newsjuice"}}]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/scratch"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["resources"]["limits"] == {"memory": "16Gi"}
    assert "nvidia.com/gpu" not in str(spec)


def test_the_pod_of_a_gpu_step_asks_for_a_gpu_its_node_and_shared_memory_once(pod: Callable[..., Any]) -> None:
    spec = pod(GPU_OP_TAGS["dagster-k8s/config"])
    (container,) = spec["containers"]

    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["nvidia.com/gpu"]
    volumes = [volume["name"] for volume in spec["volumes"]]
    assert len(set(volumes)) == len(volumes), "Kubernetes refuses a volume that is there twice"
    assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_chart_and_dagster_are_of_one_version(docker: Path) -> None:
    texts = [(docker / "kubernetes" / name).read_text() for name in ("values.yaml", "README.md")]

    assert all(dg.__version__ in text for text in texts)
