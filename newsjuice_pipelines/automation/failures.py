"""Which failures are final. Dagster retries at several levels, and a permanent failure should stop all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from newsjuice_pipelines.classification.training.loop import TrainingFailed
from newsjuice_pipelines.classification.training.models import ModelUnavailable
from newsjuice_pipelines.podcast.sampling.chunks import SourceTableError
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused
from newsjuice_pipelines.podcast.training.training_log import TrainingDiverged
from newsjuice_pipelines.runtime.artifacts import ArtifactError

# A second try cannot mend these. Bad input and bad settings are `ValueError`s in the domain packages.
PERMANENT = (ValueError, ArtifactError, SourceTableError, TeacherRefused, ModelUnavailable, TrainingDiverged, TrainingFailed)


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Turns errors that a second try cannot mend into failures that are not retried, keeping their message."""
    try:
        yield
    except PERMANENT as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
