"""Picks the executor by setting. By default steps share a process: libraries load once, and a laptop runs one step at a time.

What a GPU step asks of its executor is in `op_tags.py`; the side of the Celery workers is `celery_app.py`.
"""

import importlib
import json
import os
from types import ModuleType
from typing import Any

import dagster as dg

from newsjuice_pipelines.automation.op_tags import CONTAINER_TAG
from newsjuice_pipelines.settings import Settings

# Redis gives a task that no worker has begun after the first of these times to another one as well; an hour, its default, is less
# than a step may wait for a GPU. The others, which bound the attempts at a connection, are Dagster's.
TRANSPORT = {
    "visibility_timeout": 7 * 24 * 3600,
    "max_retries": 3,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.5,
}


def executor_for(settings: Settings) -> dg.ExecutorDefinition:
    """The executor named by `NEWSJUICE_EXECUTOR`.

    Raises:
        ImportError: its package is not installed; the message names the extra.
        ValueError: `celery` is asked for without a broker.
    """
    match settings.executor:
        case "multiprocess":
            return dg.multiprocess_executor.configured({"max_concurrent": settings.max_concurrent_steps})
        case "docker":
            return _docker_executor(settings)
        case "kubernetes":
            return _needed("dagster_k8s", "k8s", settings).k8s_job_executor
        case "celery":
            return _celery_executor(settings)
        case _:
            return dg.in_process_executor


def _needed(module: str, extra: str, settings: Settings) -> ModuleType:
    """The package of an executor, or an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"NEWSJUICE_EXECUTOR={settings.executor} needs the {extra} extra: pip install 'newsjuice-pipelines[{extra}]' "
            f"({error})."
        ) from error


def _docker_executor(settings: Settings) -> dg.ExecutorDefinition:
    """A container a step, with the machine's GPUs for steps that are tagged so.

    The image is the code location's (`DAGSTER_CURRENT_IMAGE`); networks, volumes and variables are those of Dagster's Docker run
    launcher and of the code location's container context (`DAGSTER_CONTAINER_CONTEXT`).
    """
    dagster_docker = _needed("dagster_docker.docker_executor", "docker", settings)
    delegating = importlib.import_module("dagster._core.executor.step_delegating")
    retries = importlib.import_module("dagster._core.execution.retries")
    handler = _docker_step_handler(dagster_docker)

    @dg.executor(name="docker", requirements=dg.multiple_process_executor_requirements())
    def docker_executor(init_context: dg.InitExecutorContext) -> dg.Executor:
        context = dagster_docker.DockerContainerContext()
        return delegating.StepDelegatingExecutor(
            handler(os.environ.get("DAGSTER_CURRENT_IMAGE"), context),
            retries=retries.RetryMode.ENABLED,
            max_concurrent=settings.max_concurrent_steps,
        )

    return docker_executor


def _docker_step_handler(dagster_docker: ModuleType) -> type[Any]:
    """Dagster's own, which gives every step the same container, taught to heed a step's tag."""
    plain: Any = dagster_docker.DockerStepHandler

    class TaggedStepHandler(plain):  # type: ignore[misc]  # loaded by name
        def _get_docker_container_context(self, step_handler_context: Any) -> Any:
            shared = super()._get_docker_container_context(step_handler_context)
            (tags,) = step_handler_context.step_tags.values()
            wanted = json.loads(tags.get(CONTAINER_TAG, "{}"))
            return shared.merge(dagster_docker.DockerContainerContext(container_kwargs=wanted))

    return TaggedStepHandler


def _celery_executor(settings: Settings) -> dg.ExecutorDefinition:
    """Steps as Celery tasks. A function gives the configuration, so that no URL gets into run configuration or storage."""
    celery_executor = _needed("dagster_celery", "celery", settings).celery_executor
    config = celery_config(settings)  # now, so that a missing broker is found when the code location loads
    return celery_executor.configured(lambda _: config, config_schema={})


def celery_config(settings: Settings) -> dict[str, Any]:
    """What the executor and the workers must agree on: broker, result backend, and how long a task may wait.

    Raises:
        ValueError: no broker is set.
    """
    if settings.celery_broker is None:
        raise ValueError(
            "NEWSJUICE_EXECUTOR=celery needs NEWSJUICE_CELERY_BROKER, the URL of RabbitMQ (amqp://…) or Redis (redis://…)."
        )
    broker = settings.celery_broker.get_secret_value()
    fitting = broker if broker.startswith(("redis://", "rediss://")) else "rpc://"
    backend = fitting if settings.celery_backend is None else settings.celery_backend.get_secret_value()
    return {"broker": broker, "backend": backend, "config_source": {"broker_transport_options": TRANSPORT}}
