"""Picks the executor by setting. By default steps share a process: libraries load once, and a laptop runs one step at a time."""

import dagster as dg

from newsjuice_pipelines.settings import Settings


def executor_for(settings: Settings) -> dg.ExecutorDefinition:
    """The executor named by `NEWSJUICE_EXECUTOR`.

    Raises:
        ImportError: `kubernetes` is asked for without the `k8s` extra.
    """
    if settings.executor == "multiprocess":
        return dg.multiprocess_executor.configured({"max_concurrent": settings.max_concurrent_steps})
    if settings.executor == "kubernetes":
        try:
            from dagster_k8s import k8s_job_executor
        except ImportError:
            raise ImportError(
                "NEWSJUICE_EXECUTOR=kubernetes needs the k8s extra: pip install 'newsjuice-pipelines[k8s]'"
            ) from None
        return k8s_job_executor
    return dg.in_process_executor
