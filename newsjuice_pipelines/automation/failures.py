"""Which failures are final. Dagster tries again at three levels, and a permanent failure stops all of them.

A step by its `RetryPolicy`, a run by the daemon (`run_retries`), and schedules and sensors that request the same work anew.
How long to wait before another try is `retries.py`.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from newsjuice_pipelines.classification.training.loop import TrainingFailed
from newsjuice_pipelines.classification.training.models import ModelUnavailable
from newsjuice_pipelines.database.migrate import MigrationChanged
from newsjuice_pipelines.podcast.sampling.chunks import SourceTableError
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused
from newsjuice_pipelines.podcast.training.training_log import TrainingDiverged
from newsjuice_pipelines.resources.postgres import DatabaseUnreachable
from newsjuice_pipelines.runtime.artifacts import ArtifactBusy, ArtifactError

logger = logging.getLogger("newsjuice.failures")

# A second try cannot mend these. Bad input and bad settings are `ValueError`s in the domain packages.
PERMANENT = (
    ValueError,
    ArtifactError,
    SourceTableError,
    TeacherRefused,
    ModelUnavailable,
    TrainingDiverged,
    TrainingFailed,
    MigrationChanged,
)
# Defects of a program, and packages that are not installed: the same again at the next try.
DEFECTS = (TypeError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError)

# On a run that failed for good: schedules look for it before they request the same work again, and people filter by it.
PERMANENT_TAG = "newsjuice/permanent_failure"
ERROR = "error"  # metadata of such a failure: the qualified name of what was raised
_STOPPED = {"dagster/max_retries": "0", PERMANENT_TAG: "true"}

# A server that answers and lets nobody in says so in words only: there is no code for it before a connection is open.
_REFUSED_LOG_IN = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|permission denied"
    r"|(role|user|database) \S+ (does not exist|is not permitted)"
    r"|is not a PostgreSQL URL|cannot be read: write special|no Google credentials|needs the Cloud SQL connector",
    re.IGNORECASE,
)


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Turns errors that a second try cannot mend into failures that nothing retries, keeping their message."""
    try:
        yield
    except dg.Failure as failure:
        if not failure.allow_retries:
            _stop_run_retries()
        raise
    except Exception as error:
        if not is_permanent(error):
            raise
        _stop_run_retries()
        kind = type(error)
        words = f"{kind.__name__}: {error}" if isinstance(error, DEFECTS) else str(error)
        metadata = {ERROR: f"{kind.__module__}.{kind.__qualname__}"}
        raise dg.Failure(description=words, metadata=metadata, allow_retries=False) from error


def is_permanent(error: Exception) -> bool:
    """Whether another try would end in the same way."""
    if isinstance(error, ArtifactBusy):  # the other writer will have finished
        return False
    if isinstance(error, DatabaseUnreachable):
        return _REFUSED_LOG_IN.search(str(error)) is not None
    return isinstance(error, (*PERMANENT, *DEFECTS))


def _stop_run_retries() -> None:
    """Marks the run that this step belongs to, so that the daemon does not launch it again; outside of a run it does nothing."""
    try:
        context = dg.AssetExecutionContext.get()
    except dg.DagsterInvariantViolationError:
        return
    try:
        context.instance.add_run_tags(context.run.run_id, _STOPPED)
    except Exception as error:  # those of any storage; what failed before must be what is reported
        logger.warning("the run could not be marked as failed for good: %s", type(error).__name__)
