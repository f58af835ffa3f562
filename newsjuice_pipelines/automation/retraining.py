"""Whether enough changed for the student to be trained again, as the artefact store tells it. Free of Dagster."""

from dataclasses import dataclass

from newsjuice_pipelines.runtime.artifacts import ArtifactError, ArtifactStore
from newsjuice_pipelines.runtime.provenance import fingerprint

_SCRIPTS = "teacher_scripts"


@dataclass(frozen=True)
class NewScripts:
    """Scripts that the trained student has not seen, and what tells this state of all days from any other."""

    count: int
    state: str


def new_scripts(store: ArtifactStore) -> NewScripts:
    """Usable scripts (status `ok`) that came since the adapter in force was trained; all of them before the first training.

    Only the days that changed since are read, so this is cheap on an object store too. Of a day whose earlier version is no
    longer kept, all scripts count.
    """
    days = {day: store.current_version(f"{_SCRIPTS}/{day}") for day in store.partitions(_SCRIPTS)}
    seen = _days_trained_on(store)
    changed = [(day, version) for day, version in days.items() if version != seen.get(day)]
    count = sum(max(0, _usable(store, day, version) - _usable(store, day, seen.get(day))) for day, version in changed)
    return NewScripts(count, fingerprint(days)[:16])


def _days_trained_on(store: ArtifactStore) -> dict[str, str]:
    """By day, the version of the scripts in the data set of the adapter in force; empty where that can no longer be told."""
    adapter = store.recipe_in_force("lora_adapter")
    if adapter is None:
        return {}
    try:
        inputs = store.open("student_dataset", adapter["inputs"]["student_dataset"]).recipe["inputs"]
    except ArtifactError:
        return {}
    return {key.partition("/")[2]: version for key, version in inputs.items() if key.startswith(f"{_SCRIPTS}/")}


def _usable(store: ArtifactStore, day: str, version: str | None) -> int:
    if version is None:
        return 0
    try:
        return int(store.open(f"{_SCRIPTS}/{day}", version).facts["ok"])
    except ArtifactError:
        return 0
