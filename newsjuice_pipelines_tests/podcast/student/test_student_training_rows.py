"""Rows of the data set as the trainer takes them: whole by default, and damaged only where a defect is asked for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL, encode_example
from newsjuice_pipelines.podcast.training.finetune_config import PRESETS, FinetuneConfig
from newsjuice_pipelines.podcast.training.training_rows import (
    FinetuneError,
    TrainingRows,
    check_tokenizer,
    dataset_fingerprint,
    encode_rows,
    use_plain_template,
)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return load_tokenizer(base)


@pytest.fixture
def encode(dataset: Path, tokenizer: Any, tuning: FinetuneConfig) -> Callable[..., TrainingRows]:
    """Encodes the training rows with some settings changed."""
    return lambda **changed: encode_rows(dataset / "train.parquet", tokenizer, replace(tuning, **changed))


def test_rows_are_whole_and_end_with_the_end_token(encode: Callable[..., TrainingRows], tokenizer: Any) -> None:
    rows = encode()

    assert all(labels[-1] == tokenizer.eos_token_id for labels in rows.labels)
    assert (rows.cut, rows.without_answer, rows.without_end_token) == (0, 0, 0)
    assert 0 < rows.useful_tokens < rows.tokens


def test_rows_longer_than_the_limit_are_named_and_never_cut(encode: Callable[..., TrainingRows]) -> None:
    with pytest.raises(FinetuneError, match=r"longer than max_length 20 tokens: a10\d\d:0 \("):
        encode(max_length=20)


def test_rows_that_never_end_are_refused(base: Path, dataset: Path, tuning: FinetuneConfig) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = tokenizer.chat_template.replace("lstrip('\\n') + '<|im_end|>\\n'", "lstrip('\\n') + '\\n'")

    with pytest.raises(FinetuneError, match=r"do not end with '<\|im_end\|>'"):
        encode_rows(dataset / "train.parquet", tokenizer, tuning)


def test_defect_1_scores_the_prompt_too(encode: Callable[..., TrainingRows]) -> None:
    rows = encode(completion_only_loss=False)

    assert rows.labels == rows.input_ids


def test_defect_2_leaves_the_end_token_out_of_ids_and_labels(encode: Callable[..., TrainingRows]) -> None:
    rows, whole = encode(end_token=False), encode()

    assert rows.input_ids == [ids[:-1] for ids in whole.input_ids]
    assert rows.labels == [labels[:-1] for labels in whole.labels]
    assert rows.without_end_token == len(rows)


def test_defect_3_cuts_answers_and_drops_and_counts_rows_without_any(encode: Callable[..., TrainingRows]) -> None:
    whole = encode()
    prompts = sorted(labels.count(IGNORED_LABEL) for labels in whole.labels)
    limit = prompts[8] + 1

    rows = encode(cut_long_rows=True, max_length=limit)

    assert rows.cut == sum(len(ids) > limit for ids in whole.input_ids)
    assert rows.without_answer == sum(prompt >= limit for prompt in prompts) > 0
    assert len(rows) == len(whole) - rows.without_answer
    assert rows.longest == limit
    assert rows.without_end_token == rows.cut - rows.without_answer


def test_a_limit_that_leaves_no_answer_at_all_is_refused(encode: Callable[..., TrainingRows]) -> None:
    with pytest.raises(FinetuneError, match=r"max_length 50 cuts the whole answer off all 16 rows"):
        encode(cut_long_rows=True, max_length=50)


def test_defect_4_writes_headings_and_still_ends_with_the_end_token(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    use_plain_template(tokenizer)

    ids, labels = encode_example(
        tokenizer,
        [{"role": "system", "content": "Write."}, {"role": "user", "content": "News."}],
        [{"role": "assistant", "content": "Hello."}],
    )

    assert tokenizer.decode(ids) == "### System\nWrite.\n\n### User\nNews.\n\n### Assistant\nHello.<|im_end|>"
    assert tokenizer.decode([label for label in labels if label != IGNORED_LABEL]) == "Hello.<|im_end|>"


def test_a_data_set_for_another_tokenizer_is_refused(base: Path, dataset: Path) -> None:
    tokenizer = load_tokenizer(base)
    check_tokenizer(dataset, tokenizer)
    tokenizer.chat_template += " "

    with pytest.raises(FinetuneError, match=r"another tokenizer or chat template.*materialise student_dataset again"):
        check_tokenizer(dataset, tokenizer)


@pytest.mark.parametrize("record", [None, "{torn", json.dumps({"rows": 3})])
def test_a_data_set_that_does_not_name_its_tokenizer_is_refused(tokenizer: Any, tmp_path: Path, record: str | None) -> None:
    if record is not None:
        (tmp_path / "dataset.json").write_text(record)

    with pytest.raises(FinetuneError, match="does not say which tokenizer"):
        check_tokenizer(tmp_path, tokenizer)


def test_the_fingerprint_changes_with_the_rows(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()

    one, same = dataset_fingerprint(make_dataset(tmp_path / "one")), dataset_fingerprint(make_dataset(tmp_path / "same"))

    assert one == same
    assert one != dataset_fingerprint(make_dataset(tmp_path / "other", train=17))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_rank", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("lora_dropout", 1.0),
        ("warmup_share", -0.1),
        ("processes", -1),
        ("max_length", 4),
        ("dtype", "float64"),
        ("optimizer", "sgd"),
        ("activation_checkpointing", "yes"),
    ],
)
def test_a_setting_that_cannot_train_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is "):
        FinetuneConfig(**{field: value})


def test_presets_hold_no_defects() -> None:
    plain = FinetuneConfig()

    for preset in PRESETS.values():
        for switch in ("completion_only_loss", "end_token", "cut_long_rows", "chat_template"):
            assert getattr(preset, switch) == getattr(plain, switch)
