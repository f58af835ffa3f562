"""A home with artefacts as the pipelines write them, small: reports with tables, a plot, and what an article may try."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactStore, Draft
from newsjuice_pipelines.runtime.reports import new_figure, save_figure
from newsjuice_pipelines.site.pages import Site
from newsjuice_pipelines.site.records import Records

Publish = Callable[..., Artifact]

HOSTILE = """<script>alert(1)</script> <img src=x onerror=alert(2)> [here](javascript:alert(3)) <javascript:alert(4)>

![spy](https://evil.example/spy.png) <https://evil.example> [site](https://evil.example/a)
"""
LATENCY = f"""# Latency

| seconds | timed | p50 |
| --- | ---: | ---: |
| whole script | 5 | 0.983 |
| <b>bold</b> | 5 | not measured |

![Where the time goes](latency.png)

## One script at a time

> {HOSTILE.splitlines()[0]}

{HOSTILE.splitlines()[2]}

#### Skipped levels

Words.
"""
CRITERIA = [
    {
        "name": "enough <b>scripts</b>",
        "required": True,
        "why": "too few",
        "status": "fail",
        "change": "5, must be 100",
    },
    {"name": "in form", "required": True, "why": "listeners hear it", "status": "pass", "change": None},
    {"name": "judged", "required": "if measured", "why": "words are not all", "status": "not measured", "change": "ask a judge"},
]
DECISION = {"decision": "do not adopt", "thresholds": "v2", "reasons": ["enough <b>scripts</b>"], "criteria": CRITERIA}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def publish(store: ArtifactStore) -> Publish:
    """Writes one artefact: its files, facts, and what it was made from."""

    def write(
        key: str,
        files: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        inputs: tuple[Artifact, ...] = (),
        plot: str | None = None,
        **config: Any,
    ) -> Artifact:
        def fill(draft: Draft) -> dict[str, Any]:
            for name, text in (files or {}).items():
                (draft.path / name).write_text(text, encoding="utf-8")
            if plot:
                figure, (axis,) = new_figure()
                axis.plot([1, 2], [3, 4])
                save_figure(figure, draft.path / plot)
            return dict(facts or {})

        recipe = {"code_version": "1", "config": config, "inputs": {made.key: made.version for made in inputs}}
        return store.publish(key, recipe, fill)

    return write


@pytest.fixture
def sample(store: ArtifactStore, publish: Publish, tmp_path: Path) -> Site:
    """Both verdicts, a report with a plot, one classifier with its evaluation, and a benchmark; the rest is missing."""
    day = publish("teacher_scripts/2026-09-16", facts={"rows": 2, "ok": 2})
    single_stream = {"single_stream": {"latency_p50_s": 0.983}}
    latency = publish("latency_report", {"report.md": LATENCY}, single_stream, (day,), "latency.png", prompts=5)
    publish("podcast_decision", {"report.md": "# Decision on the student: do not adopt\n\nWords.\n"}, DECISION, (latency,))
    facts = {"threshold": 0.9, "threshold_coverage": 0.4, "threshold_precision": 0.93}
    evaluation = publish("classifier_eval_report/minilm", {"report.md": "# Evaluation: minilm\n\nWords.\n"}, facts)
    ranking = [{"model": "minilm", "accuracy": 0.59, "accuracy_interval": [0.5, 0.68]}]
    board = publish("model_leaderboard", {"report.md": "# Leaderboard\n\nWords.\n"}, {"ranking": ranking}, (evaluation,))
    publish(
        "classifier_decision",
        {"report.md": "# Decision: adopt\n\nWords.\n"},
        {**DECISION, "decision": "adopt", "reasons": [], "criteria": CRITERIA[1:2]},
        (board,),
    )
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "teacher.md").write_text("# `newsjuice bench teacher`\n\n| measure | median |\n| --- | ---: |\n| a | 1.1 |\n")
    return Site(Records(store), benchmarks)
