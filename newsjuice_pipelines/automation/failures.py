"""Which failures are final. Dagster retries at several levels, and a permanent failure should stop all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from newsjuice_pipelines.runtime.artifacts import ArtifactError, DiskFull


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Turns errors that a second try cannot mend into failures that are not retried, keeping their message.

    Bad input and bad configuration are `ValueError`s in the domain packages; artefact errors name what to materialise.
    """
    try:
        yield
    except (ValueError, ArtifactError, DiskFull) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
