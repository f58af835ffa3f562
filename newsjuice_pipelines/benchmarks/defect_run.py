"""One run of the defect ledger: data set, adapter, merge, and what the merged model then does on held-out articles."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.judging.evaluate import measure_script
from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat import training_messages
from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL, encode_example, encode_prompt
from newsjuice_pipelines.podcast.training.dataset import DatasetConfig, build_student_dataset
from newsjuice_pipelines.podcast.training.defects import with_defects
from newsjuice_pipelines.podcast.training.finetune import PRESETS, train_adapter
from newsjuice_pipelines.podcast.training.merge import MergeConfig, merge_adapter
from newsjuice_pipelines.runtime.seeds import set_seeds

PLAIN_TEMPLATE_TOKENS = 16
GENTLE_CHANGE = 0.01  # of the weights' norm: what tuning a large model changes; a tiny one is changed a hundred times as much
# Left out of the pass rate: they ask for a radio frame in English, by lists of words. What a defect spoils, the others count.
WORD_LIST_KINDS = {"not_english", "no_opening", "no_closing"}


@dataclass(frozen=True)
class RunSettings:
    """How one variant is trained and measured."""

    chunk_words: int = 200
    """Most words of a passage, so that many rows are longer than `max_tokens` and something has to be cut."""
    body_words: int = 60
    """Words that the free teacher takes from a passage; its frame adds about 25."""
    max_tokens: int = 420
    """Token limit of a training row: the article gives way, or with D3 the answer."""
    epochs: int = 4
    """Passes over the training rows."""
    batch_size: int = 4
    """Rows a step, about."""
    learning_rate: float = 4e-3
    """High, as in the preset for the stand-in base."""
    max_new_tokens: int = 240
    """Where a script is capped; the longest script of the teacher has some 170 tokens."""
    temperature: float = 1.0
    """Scripts are sampled: decoded greedily a model of this size repeats itself, whatever it was taught."""


def run_variant(
    base: Path, data: Path, defects: Sequence[str], load_in_4bit: bool, seed: int, settings: RunSettings
) -> dict[str, Any]:
    """Train, merge and measure once, in one thread.

    Args:
        base: folder of the base model.
        data: folder with `scripts.parquet` (teacher scripts) and `held_out.parquet` (the same for articles never trained on).
        defects: keys of `DEFECTS` that are switched on.
        load_in_4bit: QLoRA.
        seed: of data set, adapter and sampling.
        settings: lengths and steps.

    Returns:
        Lists with an entry a held-out row: `answer_loss` (mean nats a token, end token included), `ended` (by its end of
        turn), `cap_hit`, `format_pass`; and `answer_loss_by_token` (every token alike), `effect_kept`,
        `effect_kept_gentle` (of the adapter scaled to change the weights by `GENTLE_CHANGE`; QLoRA only), `weight_change`
        (relative, mean over the blocks), `leaked_rows`, `held_rows` (validation and test), `train_rows`,
        `rows_cut`, `validation_loss` (nats a token, on the variant's own split).
    """
    import pandas as pd
    import torch

    torch.set_num_threads(1)
    scripts = pd.read_parquet(data / "scripts.parquet")
    tuning = replace(
        PRESETS["stand_in"],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        # Rows were fitted in the chat template, and D4's plain one is a few tokens longer. With D3 the limit is what cuts.
        max_length=settings.max_tokens + (0 if "D3" in defects or "D4" not in defects else PLAIN_TEMPLATE_TOKENS),
        load_in_4bit=load_in_4bit,
        patience_epochs=settings.epochs,
        processes=1,
        seed=seed,
    )
    rows, tuning, merging = with_defects(defects, DatasetConfig(max_tokens=settings.max_tokens, seed=seed), tuning, MergeConfig())
    with tempfile.TemporaryDirectory() as folder:
        dataset, adapter, scratch, merged = (Path(folder) / name for name in ("dataset", "adapter", "scratch", "merged"))
        for made in (dataset, adapter, scratch, merged):
            made.mkdir()
        split = build_student_dataset(scripts, load_tokenizer(base), rows, dataset)
        trained = train_adapter(base, dataset, tuning, adapter, scratch)
        facts = merge_adapter(base, adapter, merged, merging, dataset)
        change = statistics.mean(change for block, change in facts["weight_change_by_block"].items() if block != "other")
        gentle = None
        if tuning.load_in_4bit:
            gentle = _effect_kept(base, _scaled(adapter, GENTLE_CHANGE / change, Path(folder) / "gentle"), merging, dataset)
        measured = measure(merged, pd.read_parquet(data / "held_out.parquet"), rows, seed, settings)
    return {
        **measured,
        "effect_kept": facts["gate"]["measures"]["effect_kept"]["value"],
        "effect_kept_gentle": gentle,
        "weight_change": change,
        "leaked_rows": split["leaked_rows"],
        "held_rows": split["rows"]["validation"] + split["rows"]["test"],
        "train_rows": split["rows"]["train"],
        "rows_cut": trained["rows_cut"],
        "validation_loss": trained["validation_loss"],
    }


def _scaled(adapter: Path, factor: float, out: Path) -> Path:
    """A copy of an adapter that changes the weights `factor` times as much."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, out)
    file = out / "adapter_model.safetensors"
    tensors = {name: tensor * factor if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return out


def _effect_kept(base: Path, adapter: Path, config: MergeConfig, dataset: Path) -> float:
    with tempfile.TemporaryDirectory() as out:
        kept: float = merge_adapter(base, adapter, Path(out), config, dataset)["gate"]["measures"]["effect_kept"]["value"]
    return kept


def measure(model: Path, held_out: Any, config: DatasetConfig, seed: int, settings: RunSettings) -> dict[str, Any]:
    """What a merged model does on held-out articles, asked as it was taught: the row-wise part of `run_variant`.

    Every variant is asked about whole sentences of the article and judged by the whole script, whatever it was trained on.
    """
    import torch

    tokenizer, student = load_tokenizer(model), load_model(model)
    prompts, losses, lengths = [], [], []
    for article, script in held_out[["chunk_text", "gemini_podcast_text"]].itertuples(index=False):
        messages = training_messages(article, script, tokenizer, settings.max_tokens, config.prompt_version)
        if messages is None:  # the long instruction leaves too little room for an article that begins with a long sentence
            messages = training_messages(article, script, tokenizer, None, config.prompt_version)
        assert messages is not None
        ids, labels = encode_example(tokenizer, *messages)
        prompts.append(encode_prompt(tokenizer, messages[0]))
        first = next(place for place, label in enumerate(labels) if label != IGNORED_LABEL)
        with torch.inference_mode():
            logits = student(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first - 1 : -1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[first:])).item())
        lengths.append(len(labels) - first)
    answers = _sample(student, tokenizer, prompts, seed, settings)
    end, stops = tokenizer.eos_token_id, set(student.generation_config.eos_token_id)
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return {
        "answer_loss": losses,
        "answer_loss_by_token": sum(loss * length for loss, length in zip(losses, lengths, strict=True)) / sum(lengths),
        "ended": [float(answer[-1] == end) for answer in answers],
        "cap_hit": [float(answer[-1] not in stops) for answer in answers],
        "format_pass": [float(not set(measure_script(text).failures) - WORD_LIST_KINDS) for text in texts],
    }


def _sample(student: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], seed: int, settings: RunSettings) -> list[list[int]]:
    """New tokens for each prompt, end token included, in one batch that is padded on the left."""
    import torch

    set_seeds(seed)
    pad, width = tokenizer.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        made = student.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=settings.temperature,
            top_k=0,
            max_new_tokens=settings.max_new_tokens,
        )
    stops = set(student.generation_config.eos_token_id)
    answers = []
    for row in made[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
        answers.append(row[: end + 1])
    return answers


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write one finished run in one step, so that a run that is cut off leaves none or a whole one."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)
