"""Asset checks: each is a pure `evaluate_*` function over facts, wrapped once. `ALL_CHECKS` is the registry."""

from newsjuice_pipelines.checks.classification import CLASSIFICATION_CHECKS
from newsjuice_pipelines.checks.podcast import PODCAST_CHECKS

ALL_CHECKS = [*PODCAST_CHECKS, *CLASSIFICATION_CHECKS]
