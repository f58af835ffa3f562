"""The inference benchmark: a model that writes known scripts, and every variant on a very small one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from newsjuice_pipelines.benchmarks import cpu_engines, inference
from newsjuice_pipelines.benchmarks.scripted_model import build_scripted, made_up_scripts
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny
from newsjuice_pipelines.runtime.reports import cell

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tiny(DEMO_ARTICLES.read_text(encoding="utf-8").splitlines()[:30], TinyConfig(steps=1, vocab_size=512), folder)
    return load_tokenizer(folder)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inference, cpu_engines):
        monkeypatch.setattr(module, "in_own_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(inference, "has_gpu", lambda: False)


def test_scripts_have_the_lengths_and_the_copied_share_that_were_asked_for() -> None:
    scripts = made_up_scripts([(1, 100, 0.0), (2, 100, 0.5), (1, 100, 1.0)], 120, 2, common_prefix_tokens=20)

    assert {len(script.prompt) for script in scripts} == {120}
    assert {len(script.answer) for script in scripts} == {100}
    assert len({script.prompt[:20] for script in scripts}) == 1
    copied = [sum(token in script.prompt for token in script.answer) for script in scripts]
    assert copied[0] == 0
    assert copied[1] == copied[2] == pytest.approx(50, abs=13)
    assert copied[3] >= 75


def test_no_two_scripts_share_a_token_that_follows_from_another() -> None:
    scripts = made_up_scripts([(3, 60, 0.5)], 80, 2)

    tokens = [token for script in scripts for token in script.answer[:-1]]

    assert len(set(tokens)) == len(tokens)


def test_the_scripted_model_writes_its_scripts_and_then_stops(tokenizer: Any, tmp_path: Path) -> None:
    scripts = made_up_scripts([(3, 40, 0.5)], 60, tokenizer.eos_token_id, 10)
    build_scripted(scripts, tokenizer, tmp_path, SHAPE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)

    for script in scripts:
        whole = model.generate(torch.tensor([script.prompt]), max_new_tokens=80, do_sample=False)[0].tolist()

        assert tuple(whole[60:]) == script.answer


def test_scripts_that_do_not_fit_into_the_model_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit into 512 hidden units"):
        build_scripted(made_up_scripts([(6, 100, 0.0)], 120, 2), tokenizer, tmp_path, SHAPE)
    with pytest.raises(ValueError, match="outside of a vocabulary"):
        build_scripted(made_up_scripts([(4, 100, 0.0)], 1200, 2), tokenizer, tmp_path, SHAPE)


def test_every_variant_writes_the_scripts_and_is_held_against_the_original(in_this_process: None) -> None:
    results = inference.run(repeats=1, shape=SHAPE, prompt_tokens=60, answer_tokens=40)

    measured = results["measured"]
    assert {name for name, found in measured.items() if found is None} == set(inference.GPU_VARIANTS)
    for name in inference.VARIANTS:
        assert measured[name]["as_scripted"] == 1, name
        assert measured[name]["tokens_per_s"] > 0
        assert measured[name]["latency_s"] > 0
    assert measured[inference.ORIGINAL]["times_the_original"] == [1, 1, 1]
    assert measured[inference.ORIGINAL]["bandwidth_share"] > 0
    assert measured["int8, 8 at once"]["bandwidth_share"] is None

    page = inference.table(results)

    assert all(f"| {cell(name)} |" in page for name in measured)
    assert "not measured" in page


def test_what_is_not_installed_is_not_measured(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    variants = {name: inference.VARIANTS[name] for name in (inference.ORIGINAL, "int8, one at a time")}

    results = inference.run(repeats=1, variants=variants, shape=SHAPE, prompt_tokens=40, answer_tokens=20)

    assert results["measured"]["int8, one at a time"] is None
    assert results["measured"][inference.ORIGINAL] is not None


def test_the_cpu_engines_write_the_same_scripts(in_this_process: None) -> None:
    results = cpu_engines.run(repeats=1, shape=SHAPE, prompt_tokens=60, answer_tokens=40, candidates=("OpenVINO GenAI",))

    for precision in cpu_engines.PRECISIONS:
        found = results["measured"][f"OpenVINO GenAI, {precision}"]
        assert found["as_scripted"] == 1
        assert found["decode_tokens_per_s"] > 0
        assert found["install_mib"] > 10
    assert results["measured"]["llama.cpp, int8"] is None
    assert "| llama.cpp, int8 | not measured |" in cpu_engines.table(results)


def test_a_measurement_that_is_broken_off_reports_the_rounds_that_were_finished(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_round = inference._round

    def broken_off_in_the_second(variants: Any, home: Path, instruction_tokens: int, title: str) -> Any:
        if "run 2" in title:
            raise KeyboardInterrupt
        return whole_round(variants, home, instruction_tokens, title)

    monkeypatch.setattr(inference, "_round", broken_off_in_the_second)
    variants = {inference.ORIGINAL: inference.VARIANTS[inference.ORIGINAL]}

    results = inference.run(repeats=3, variants=variants, shape=SHAPE, prompt_tokens=40, answer_tokens=20)

    assert results["repeats"] == 1
    assert len(results["measured"][inference.ORIGINAL]["runs"]) == 1
