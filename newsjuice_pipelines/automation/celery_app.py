"""The Celery application of the workers: `celery -A newsjuice_pipelines.automation.celery_app worker -Q gpu -c 1` (or `dagster`).

Which steps come to which queue is `op_tags.py`; the other side is the executor in `executors.py`.
"""

from typing import Any

from newsjuice_pipelines.automation.executors import celery_config
from newsjuice_pipelines.settings import Settings, load_settings


def celery_app(settings: Settings) -> Any:
    """An application that knows the task which executes a step, on the broker of the settings.

    Each step gets a process of its own: it leases its GPU before CUDA starts, and leaves no memory behind.
    """
    from dagster_celery.executor import CeleryExecutor
    from dagster_celery.make_app import make_app
    from dagster_celery.tasks import create_task

    made = make_app(CeleryExecutor.for_cli(**celery_config(settings)).app_args())
    made.conf.worker_max_tasks_per_child = 1
    made.conf.worker_prefetch_multiplier = 1
    create_task(made)
    return made


app = celery_app(load_settings())
