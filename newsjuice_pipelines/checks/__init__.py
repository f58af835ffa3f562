"""Asset checks: each is a pure `evaluate_*` function over facts, wrapped once.

`ALL_CHECKS` is the registry of those that read artefacts in force. What judges a run's own rows (`CHUNKS_ARE_USABLE`,
`SCRIPTS_ARE_FIT_FOR_TRAINING`) is a spec here, and its result comes from the asset itself.
"""

from newsjuice_pipelines.checks.classification import CLASSIFICATION_CHECKS
from newsjuice_pipelines.checks.podcast import PODCAST_CHECKS

ALL_CHECKS = [*PODCAST_CHECKS, *CLASSIFICATION_CHECKS]
