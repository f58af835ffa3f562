"""The launchpad form of each configurable asset: what can be set, with defaults that work."""

from pydantic import Field

from newsjuice_pipelines.assets.launchpad import LaunchpadConfig, launchpad_config, override_config
from newsjuice_pipelines.classification.corpus.split_config import SplitConfig
from newsjuice_pipelines.classification.corpus.taxonomy import packaged_taxonomies
from newsjuice_pipelines.classification.judging.evaluate import EvaluationConfig
from newsjuice_pipelines.classification.judging.overlap import AuditConfig
from newsjuice_pipelines.classification.serving.onnx_export import ExportConfig
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig
from newsjuice_pipelines.podcast.engines import ENGINES
from newsjuice_pipelines.podcast.judging.latency import LatencyConfig
from newsjuice_pipelines.podcast.judging.quality import QualityConfig
from newsjuice_pipelines.podcast.judging.scripts import GenerationConfig
from newsjuice_pipelines.podcast.quantising.quantise import QuantiseConfig
from newsjuice_pipelines.podcast.sampling.chunks import ChunkSampling
from newsjuice_pipelines.podcast.teaching.batches import BatchConfig
from newsjuice_pipelines.podcast.teaching.gemini import GeminiConfig
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.prompts import PROMPT_VERSIONS
from newsjuice_pipelines.podcast.training.dataset import DATASET_PRESETS, DatasetConfig
from newsjuice_pipelines.podcast.training.finetune_config import PRESETS, FinetuneConfig
from newsjuice_pipelines.podcast.training.merge import MergeConfig
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig

ChunkForm = launchpad_config(ChunkSampling)
DatasetForm = override_config(
    DatasetConfig, preset=(str, "recommended", f"One of {', '.join(DATASET_PRESETS)}: the split and the prompt, no defects.")
)
# The fields of `GeminiConfig` and `BatchConfig` are the paid teacher's and are not used for the free one.
TeacherForm = launchpad_config(
    AskingConfig,
    GeminiConfig,
    BatchConfig,
    teacher=(str | None, None, "`extractive` (free) or `gemini` (paid). Default: NEWSJUICE_TEACHER."),
    gemini_model=(str | None, None, "Gemini model. Default: NEWSJUICE_GEMINI_MODEL."),
    prompt_version=(str, "v2", f"Version of the prompt: {', '.join(PROMPT_VERSIONS)}."),
    dry_run=(bool, False, "Only say how many calls would be made and what they would cost; nothing is asked or written."),
)
# The fields of `TinyConfig` shape the stand-in and are not used for other models.
BaseModelForm = launchpad_config(
    TinyConfig,
    name=(str | None, None, "`tiny`, a Hugging Face id, or a local folder. Default: NEWSJUICE_BASE_MODEL."),
    revision=(str | None, None, "Commit on the hub. Default: NEWSJUICE_BASE_MODEL_REVISION, or the pinned one."),
    articles=(int, 3000, "Most articles that `tiny` is pre-trained on."),
)
FinetuneForm = override_config(
    FinetuneConfig,
    preset=(str | None, None, f"One of {', '.join(PRESETS)}. Default: `stand_in` for the tiny base, `recommended` for others."),
)
MergeForm = launchpad_config(
    MergeConfig,
    register_with_image=(
        str | None,
        None,
        "Also put the model into the Vertex AI Model Registry, to be served by this container image; only past the merge gate.",
    ),
)
QuantiseForm = launchpad_config(QuantiseConfig)
_ENGINE = (str | None, None, f"auto, {', '.join(ENGINES)}. Default: NEWSJUICE_STUDENT_ENGINE.")
GenerationForm = launchpad_config(GenerationConfig, engine=_ENGINE)
LatencyForm = launchpad_config(LatencyConfig, engine=_ENGINE)
QualityForm = launchpad_config(QualityConfig)
SplitForm = launchpad_config(SplitConfig)
AuditForm = launchpad_config(AuditConfig)
ClassifierForm = launchpad_config(ClassifierConfig)
EvaluationForm = launchpad_config(EvaluationConfig)
ExportForm = launchpad_config(ExportConfig)


class HuffPostForm(LaunchpadConfig):
    """Which headlines are read."""

    path: str | None = Field(
        None, description="JSON lines of the News Category Dataset, or `kaggle`. Default: NEWSJUICE_HUFFPOST_PATH."
    )


class TaxonomyForm(LaunchpadConfig):
    """Which classes are used."""

    name: str = Field(
        "original-29", description=f"A packaged taxonomy ({', '.join(packaged_taxonomies())}), or the path of a YAML file."
    )


class ExternalForm(LaunchpadConfig):
    """Which articles of another source are filed."""

    csv: str | None = Field(None, description="CSV with id, title, content, summary. Default: NEWSJUICE_EXTERNAL_CSV.")
    articles: int = Field(2000, description="Most rows of the articles table, when there is no CSV.")
    crosswalk: str = Field("default", description="A packaged crosswalk from foreign labels, or the path of a YAML file.")
    compare_raw_strings: bool = Field(
        False, description="Defect D16: compare labels letter by letter, as the original did; the check then fails."
    )


class ThresholdsForm(LaunchpadConfig):
    """What has to be reached for `adopt`."""

    thresholds: str = Field("v2", description="A packaged version of the thresholds, or the path of a YAML file.")


class PromotionForm(LaunchpadConfig):
    """Which model goes into service."""

    run_id: str = Field("", description="Id of the run whose podcast_decision was about the model.")
    against_the_decision: bool = Field(False, description="Serve it although the decision is not to adopt it.")
    roll_back: bool = Field(False, description="Instead of a run: put the model back into service that was replaced last.")
