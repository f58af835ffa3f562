"""What the site knows of the assets: their order, their inputs, and which document of each is a page.

It repeats the graph of the definitions, so that a site needs no Dagster; a test holds both together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["podcast", "classification"]

REPORT = "report.md"
CARD = "README.md"
BY_HAND = "promoted_model"


@dataclass(frozen=True)
class Asset:
    """One asset: `parents` are the assets that it reads, `document` the Markdown file of its artefact that becomes a page."""

    name: str
    group: Group
    title: str
    says: str
    parents: tuple[str, ...] = ()
    partitioned_by: Literal["day", "model"] | None = None
    document: str | None = None

    @property
    def how_to_get(self) -> str:
        """What a person does to have it."""
        if self.name == BY_HAND:
            return "Promotion is a step taken by hand: materialise promoted_model with the id of the run that judged the student."
        return f"Run “newsjuice run --select {self.name}”, or “newsjuice run” for everything that is still missing."


ASSETS: tuple[Asset, ...] = (
    Asset("article_chunks", "podcast", "Article chunks", "The sample of article passages, by day.", (), "day"),
    Asset(
        "teacher_scripts",
        "podcast",
        "Teacher scripts",
        "The teacher's script for each chunk, by day.",
        ("article_chunks",),
        "day",
    ),
    Asset("base_model", "podcast", "Base model", "The untuned model."),
    Asset(
        "student_dataset",
        "podcast",
        "Training rows",
        "Two rows with what the training covers and what it does not.",
        ("teacher_scripts", "base_model"),
        document="masked_rows.md",
    ),
    Asset(
        "lora_adapter",
        "podcast",
        "Adapter",
        "How the student was trained: settings, losses, memory.",
        ("student_dataset", "base_model"),
        document=CARD,
    ),
    Asset(
        "merged_model",
        "podcast",
        "Student",
        "The student's model card, with the merge gate's figures.",
        ("lora_adapter", "base_model", "student_dataset"),
        document=CARD,
    ),
    Asset(
        "quantised_model",
        "podcast",
        "Quantised student",
        "The student in 8 or 4 bits, with its gate.",
        ("merged_model", "student_dataset"),
    ),
    Asset(
        "quantised_base", "podcast", "Quantised base", "The untuned model in the same form.", ("base_model", "student_dataset")
    ),
    Asset(
        "student_scripts",
        "podcast",
        "Student scripts",
        "Scripts of the tuned student.",
        ("merged_model", "quantised_model", "student_dataset"),
    ),
    Asset(
        "base_scripts",
        "podcast",
        "Base scripts",
        "Scripts of the untuned model.",
        ("base_model", "quantised_base", "student_dataset"),
    ),
    Asset(
        "latency_report",
        "podcast",
        "Latency",
        "How long a script takes, where the time goes, and what it costs.",
        ("student_scripts", "base_scripts", "teacher_scripts", "merged_model", "quantised_model", "student_dataset"),
        document=REPORT,
    ),
    Asset(
        "script_quality_report",
        "podcast",
        "Script quality",
        "Teacher, student, untuned model and lead sentences side by side, with examples.",
        ("student_scripts", "base_scripts"),
        document=REPORT,
    ),
    Asset(
        "podcast_decision",
        "podcast",
        "Podcast decision",
        "Adopt the student or not, criterion by criterion.",
        ("latency_report", "script_quality_report"),
        document=REPORT,
    ),
    Asset(
        "promoted_model",
        "podcast",
        "Model in service",
        "The student that a person put into service.",
        ("podcast_decision", "merged_model", "quantised_model"),
    ),
    Asset("huffpost_articles", "classification", "Headlines", "The labelled headlines."),
    Asset("taxonomy", "classification", "Taxonomy", "Which section belongs to which class.", ("huffpost_articles",)),
    Asset(
        "balanced_split",
        "classification",
        "Split",
        "Train, validation, calibration and test rows.",
        ("huffpost_articles", "taxonomy"),
    ),
    Asset(
        "overlap_report",
        "classification",
        "Leaks, labels and overlap",
        "What would flatter or limit any classifier, and a taxonomy that mends it.",
        ("balanced_split",),
        document=REPORT,
    ),
    Asset(
        "classifier_checkpoint",
        "classification",
        "Checkpoints",
        "One trained classifier a model.",
        ("balanced_split",),
        "model",
    ),
    Asset(
        "classifier_eval_report",
        "classification",
        "Evaluation",
        "Scores with intervals, calibration, and what it may file alone.",
        ("classifier_checkpoint", "balanced_split"),
        "model",
        REPORT,
    ),
    Asset(
        "exported_classifier",
        "classification",
        "Export",
        "The classifier with 8-bit weights, and whether it is as accurate.",
        ("classifier_checkpoint", "balanced_split"),
        "model",
        REPORT,
    ),
    Asset(
        "external_predictions",
        "classification",
        "Another source",
        "Articles from elsewhere, filed under our classes.",
        ("classifier_checkpoint", "classifier_eval_report", "taxonomy"),
        "model",
        REPORT,
    ),
    Asset(
        "model_leaderboard",
        "classification",
        "Leaderboard",
        "Models and recipes ranked, with paired tests.",
        ("classifier_eval_report",),
        document=REPORT,
    ),
    Asset(
        "classifier_decision",
        "classification",
        "Classifier decision",
        "Adopt the best classifier or not, criterion by criterion.",
        ("model_leaderboard", "classifier_eval_report"),
        document=REPORT,
    ),
)
BY_NAME = {asset.name: asset for asset in ASSETS}

# The order in which a reader wants them: the verdict, what it rests on, how it was made.
PAGES: dict[Group, tuple[str, ...]] = {
    "podcast": (
        "podcast_decision",
        "script_quality_report",
        "latency_report",
        "merged_model",
        "lora_adapter",
        "student_dataset",
    ),
    "classification": ("classifier_decision", "model_leaderboard", "overlap_report"),
}
SECTION_ORDER: tuple[Group, ...] = ("podcast", "classification")
PAGES_BY_MODEL = ("classifier_eval_report", "exported_classifier", "external_predictions")
DECISIONS: dict[Group, str] = {"podcast": "podcast_decision", "classification": "classifier_decision"}
