"""The quantised student: the GGUF file as other programs read it, and a gate that passes, fails, and says when it cannot tell."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.engines import default_engine
from newsjuice_pipelines.podcast.quantising import quantise as quantise_module
from newsjuice_pipelines.podcast.quantising import quantised_gate
from newsjuice_pipelines.podcast.quantising.gguf_export import FILES, export_gguf
from newsjuice_pipelines.podcast.quantising.quantise import QuantiseConfig, QuantisingError, quantise_model
from newsjuice_pipelines.podcast.quantising.quantised_gate import held_out_rows, judge_quantised, measure_reference
from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer

gguf = pytest.importorskip("gguf")


def quantise(model: Path, dataset: Path, out: Path, **config: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    return quantise_model(model, dataset, out, QuantiseConfig(**config))


def types_of(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.fixture
def make_qwen3(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes an untrained Qwen3 with the micro base model's tokenizer."""

    def make(dtype: str = "float32", shards: str = "5GB", **shape: Any) -> Path:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(1)
        tokenizer = load_tokenizer(base)
        config: dict[str, Any] = {
            "vocab_size": len(tokenizer) + 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "max_position_embeddings": 512,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_theta": 50_000.0,
            "tie_word_embeddings": True,
        }
        model = Qwen3ForCausalLM(Qwen3Config(**{**config, **shape})).to(getattr(torch, dtype))
        folder = tmp_path / "qwen3"
        model.save_pretrained(folder, max_shard_size=shards)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def copy_of_merged(merged: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """The merged model in a folder that a test may damage."""
    return Path(shutil.copytree(merged[0], tmp_path / "copy"))


@pytest.fixture
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the 125 answer tokens of the micro data set be enough for a verdict."""
    monkeypatch.setattr(quantised_gate, "LEAST_POSITIONS", 100)


def change_config(folder: Path, **change: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- the gate


@pytest.mark.usefixtures("few_positions")
def test_eight_bits_of_a_healthy_model_pass_and_leave_a_complete_folder(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino_genai")
    facts = quantise(merged[0], dataset, tmp_path / "out")
    assert facts["passed"] is True, facts["why"]
    weights, engine = {"nll_increase_nats", "top1_agreement"}, {"answered", "regret_nats", "single_stream_regret_nats"}
    assert set(facts["measures"]) == weights | engine
    assert facts["measures"]["nll_increase_nats"]["value"] < 0.005
    assert (facts["precision"], facts["prompts"], facts["parity"]["requests"]) == ("int8", 3, 3)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model-q8_0.gguf", "gate.json", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert json.loads((tmp_path / "out" / "gate.json").read_text()) == facts
    assert default_engine("cpu", tmp_path / "out")[0] == "openvino"
    assert facts["size_bytes"] < 0.35 * facts["source_size_bytes"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert facts["source_identity"] in card
    assert "**Passed**" in card
    assert "| nll increase nats |" in card
    assert "llama-cli -m model-q8_0.gguf" in card
    assert "newsjuice run --select student_scripts" in card
    assert str(tmp_path) not in card
    assert str(merged[0]) not in card


def test_equal_work_gives_equal_files_and_facts_wherever_it_is_done(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path
) -> None:
    made = [quantise(merged[0], dataset, tmp_path / name, gate_prompts=1, max_new_tokens=2) for name in ("here", "there")]
    assert made[0] == made[1]
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name


def test_too_few_held_out_tokens_leave_the_verdict_open(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino_genai")
    facts = quantise(merged[0], dataset, tmp_path / "out")
    assert all(measure["passed"] for measure in facts["measures"].values())
    assert facts["passed"] is None
    assert f"have {facts['positions']} tokens, and a verdict needs 300" in facts["why"]
    assert default_engine("cpu", tmp_path / "out")[0] == "transformers"


def test_four_bits_keep_the_embeddings_in_eight(merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path) -> None:
    facts = quantise(merged[0], dataset, tmp_path / "out", precision="int4")
    kinds = types_of(tmp_path / "out" / facts["file"])
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert facts["nll_nats"] != facts["reference_nll_nats"]


@pytest.mark.usefixtures("few_positions")
def test_four_bits_that_cost_too_much_make_auto_take_eight(copy_of_merged: Path, dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    change_weights(copy_of_merged, spread_channels)
    facts = quantise(copy_of_merged, dataset, tmp_path / "auto", precision="auto")
    assert facts["precision"] == "int8"
    assert facts["passed"] is True, facts["why"]
    assert [(one["precision"], one["passed"]) for one in facts["tried"]] == [("int4", False)]
    assert "nll_increase_nats" in facts["tried"][0]["why"]
    assert not (tmp_path / "auto" / FILES["int4"]).exists()


def spread_channels(weights: dict[str, Any]) -> None:
    """Make one channel in each block large and its norm small: the model says the same, but its blocks share a coarse scale."""
    for name in list(weights):
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            weights[name][::32] /= OUTLIER
            layer, _, norm = name.removesuffix(".weight").rpartition(".")
            inputs = (
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
                if norm[0] == "i"
                else ("mlp.gate_proj", "mlp.up_proj")
            )
            for matrix in inputs:
                weights[f"{layer}.{matrix}.weight"][:, ::32] *= OUTLIER


OUTLIER = 12.0


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("step", [34, 1], ids=["blocks in another order", "bytes in another order, some of them no numbers"])
def test_a_damaged_matrix_fails_the_gate_with_its_measures(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "out"
    facts = quantise(merged[0], dataset, out)
    file = out / facts["file"]
    tensor = next(one for one in gguf.GGUFReader(file).tensors if one.name == "blk.1.ffn_down.weight")
    content = bytearray(file.read_bytes())
    start, size = int(tensor.data_offset), int(tensor.n_bytes)
    pieces = [content[place : place + step] for place in range(start, start + size, step)]
    content[start : start + size] = b"".join(reversed(pieces))
    file.write_bytes(content)
    (out / "gate.json").unlink()  # its checksum would stop the engine before the gate could judge
    verdict = judge_quantised(measure_reference(merged[0], held_out_rows(dataset, merged[0], 3), 32), out, file)
    assert verdict.passed is False
    assert {"nll_increase_nats", "regret_nats"} <= {name for name, measure in verdict.measures.items() if not measure.passed}
    assert "nll_increase_nats" in verdict.why
    json.dumps(verdict.as_json(), allow_nan=False)


def test_right_weights_that_the_engine_runs_in_a_wrong_way_fail(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino_genai")
    right = gguf.GGUFWriter.add_rope_freq_base
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda writer, base: right(writer, base / 1000))
    facts = quantise(merged[0], dataset, tmp_path / "out")
    assert facts["passed"] is False
    failed = {name for name, measure in facts["measures"].items() if not measure["passed"]}
    assert failed == {"regret_nats", "single_stream_regret_nats"}


def test_without_the_engine_the_weights_are_judged_and_the_verdict_is_open(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (quantised_gate, quantise_module):
        monkeypatch.setattr(module, "engine_installed", lambda: False)
    facts = quantise(merged[0], dataset, tmp_path / "out", precision="auto")
    assert (facts["passed"], facts["precision"], facts["engine_version"]) == (None, "int8", None)
    assert set(facts["measures"]) == {"nll_increase_nats", "top1_agreement"}
    assert "cpu-engine" in facts["why"]
    assert default_engine("cpu", tmp_path / "out")[0] == "transformers"


def test_weights_that_are_too_coarse_fail_even_without_the_engine(
    copy_of_merged: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised_gate, "engine_installed", lambda: False)
    change_weights(copy_of_merged, spread_channels)
    assert quantise(copy_of_merged, dataset, tmp_path / "out", precision="int4")["passed"] is False


def test_a_file_that_the_engine_cannot_read_fails(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino_genai")
    from newsjuice_pipelines.podcast.engines import EngineError

    def refuse(*_: Any) -> None:
        raise EngineError(f"OpenVINO cannot read {tmp_path / 'out' / 'model-q8_0.gguf'}")

    monkeypatch.setattr(quantised_gate, "OpenvinoEngine", refuse)
    facts = quantise(merged[0], dataset, tmp_path / "out")
    assert facts["passed"] is False
    assert facts["why"] == "the engine cannot run it: OpenVINO cannot read model-q8_0.gguf"


def test_a_validation_split_without_rows_leaves_the_verdict_open(
    merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pd.read_parquet(dataset / "validation.parquet").head(0).to_parquet(empty / "validation.parquet")
    facts = quantise(merged[0], empty, tmp_path / "out")
    assert facts["passed"] is None
    assert "no row with an answer" in facts["why"]
    assert (tmp_path / "out" / "model-q8_0.gguf").is_file()


def test_a_data_set_without_validation_split_is_an_error(merged: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(QuantisingError, match=r"validation\.parquet is missing.*materialise student_dataset"):
        quantise(merged[0], tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "llama"}, "knows Qwen3, not 'llama'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rotary embeddings of type 'yarn'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config={'quant_method': 'fp8'}"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"head_dim": None}, "no usable head_dim: None"),
        ({"num_hidden_layers": "two"}, "no usable num_hidden_layers: 'two'"),
        ({"rms_norm_eps": None}, "no usable rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": None}, "no usable rope_theta"),
        ({"vocab_size": 100}, "and the model only 100 tokens"),
    ],
)
def test_an_architecture_that_the_exporter_does_not_know_is_no_error(
    copy_of_merged: Path, dataset: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    change_config(copy_of_merged, **change)
    facts = quantise(copy_of_merged, dataset, tmp_path / "out")
    assert facts["passed"] is None
    assert reason in facts["why"]
    assert not list((tmp_path / "out").glob("*.gguf"))
    assert default_engine("cpu", tmp_path / "out")[0] == "transformers"


def test_a_tokenizer_that_cuts_text_in_another_way_is_not_exported(copy_of_merged: Path, dataset: Path, tmp_path: Path) -> None:
    file = copy_of_merged / "tokenizer.json"
    file.write_text(file.read_text().replace(r"\\p{N}|", r"\\p{N}{1,3}|"))
    assert "tokenizers that cut text as Qwen's do" in quantise(copy_of_merged, dataset, tmp_path / "out")["why"]


def test_a_tensor_that_qwen3_does_not_have_is_no_error_and_other_engines_run_the_model(
    copy_of_merged: Path, dataset: Path, tmp_path: Path
) -> None:
    change_weights(copy_of_merged, lambda weights: weights.update({"model.extra.weight": weights["model.norm.weight"].clone()}))
    facts = quantise(copy_of_merged, dataset, tmp_path / "out")
    assert (facts["passed"], facts["file"]) == (None, None)
    assert "a tensor 'model.extra.weight' that Qwen3 does not have" in facts["why"]
    assert default_engine("cpu", tmp_path / "out")[0] == "transformers"


def test_weights_of_another_number_format_are_not_exported(copy_of_merged: Path, dataset: Path, tmp_path: Path) -> None:
    norm = "model.norm.weight"
    change_weights(copy_of_merged, lambda weights: weights.update({norm: weights[norm].double()}))
    assert "stored in F64" in quantise(copy_of_merged, dataset, tmp_path / "out")["why"]


def test_text_of_a_models_own_files_stays_code_in_the_card(copy_of_merged: Path, dataset: Path, tmp_path: Path) -> None:
    change_config(copy_of_merged, model_type="``<img src=x>\n\n# llama")
    quantise(copy_of_merged, dataset, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(``` not quantised: the exporter knows Qwen3, not '``<img src=x>\\n\\n# llama' ```)" in card


# --- damaged folders, which are errors that no retry mends


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "model.safetensors"), r"weights .*model\.safetensors are damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: cut(folder / "config.json"), r"config\.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), r"config\.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda folder: cut(folder / "tokenizer.json"), r"tokenizer\.json is damaged"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), r"generation_config\.json is damaged"),
        (lambda folder: change_config(folder, intermediate_size=256), r"has the shape \(64, 128\).*asks for \(64, 256\)"),
        (lambda folder: change_config(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3), "lacks 11 tensors"),
    ],
)
def test_a_damaged_model_is_named_before_anything_loads_it(
    copy_of_merged: Path, dataset: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy_of_merged)
    with pytest.raises(QuantisingError, match=message):
        quantise(copy_of_merged, dataset, tmp_path / "out")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is damaged"),
        ("{}", "names no files"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "names no files of this folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"lacks gone\.safetensors"),
    ],
)
def test_a_damaged_index_of_the_weights_is_named(copy_of_merged: Path, tmp_path: Path, index: str, message: str) -> None:
    (copy_of_merged / "model.safetensors").unlink()
    (copy_of_merged / "model.safetensors.index.json").write_text(index)
    with pytest.raises(QuantisingError, match=message):
        export_gguf(copy_of_merged, tmp_path / "model.gguf", "int8")


# --- the file


@pytest.mark.parametrize(
    ("dtype", "shards", "tied"),
    [("float32", "5GB", True), ("bfloat16", "60KB", True), ("float16", "5GB", False)],
)
def test_another_reader_gets_the_same_model_and_tokenizer_from_the_file(
    make_qwen3: Callable[..., Path], tmp_path: Path, dtype: str, shards: str, tied: bool
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = make_qwen3(dtype, shards, tie_word_embeddings=tied)
    assert (source / "model.safetensors.index.json").is_file() is (shards == "60KB")
    out = tmp_path / "out"
    out.mkdir()
    export_gguf(source, out / "model.gguf", "int8")
    read = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    tokenizer, own = AutoTokenizer.from_pretrained(out, gguf_file="model.gguf"), load_tokenizer(source)
    ids = own("<|im_start|>user\nThe mayor's café: 12 birds!<|im_end|>\n", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected, found = load_model(source)(ids).logits, read(ids).logits
    # Measured 0.6 to 0.7 %; a wrong base of the rotary embeddings alone makes 10 % and more.
    assert (expected - found).norm() < 0.02 * expected.norm()
    assert (read.config.max_position_embeddings, read.config.tie_word_embeddings) == (512, tied)
    assert tokenizer("<|im_start|>user\nThe mayor's café: 12 birds!<|im_end|>\n")["input_ids"] == ids[0].tolist()
    assert (tokenizer.eos_token, tokenizer.chat_template) == (own.eos_token, own.chat_template)
    assert ("output.weight" in types_of(out / "model.gguf")) is not tied


def test_rows_that_fill_no_whole_blocks_stay_float16(make_qwen3: Callable[..., Path], tmp_path: Path) -> None:
    source = make_qwen3(hidden_size=48)
    facts = export_gguf(source, tmp_path / "model.gguf", "int8")
    kinds = types_of(tmp_path / "model.gguf")
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.attn_output.weight"]) == ("F16", "Q8_0")
    assert facts["tensors"] == {"F16": 11, "F32": 9, "Q8_0": 4}


def test_head_size_and_context_are_in_the_file_under_the_names_that_llama_cpp_reads(
    merged: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    export_gguf(merged[0], tmp_path / "model.gguf", "int8")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["qwen3.attention.key_length"].contents() == 16
    assert fields["qwen3.context_length"].contents() == 512
    assert fields["qwen3.rope.freq_base"].contents() == 10_000.0
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == load_tokenizer(merged[0]).eos_token_id


def test_a_missing_tensor_is_named(copy_of_merged: Path, tmp_path: Path) -> None:
    change_weights(copy_of_merged, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(QuantisingError, match=r"lacks 1 tensors, such as blk\.1\.ffn_up\.weight"):
        export_gguf(copy_of_merged, tmp_path / "model.gguf", "int8")


def test_a_weight_that_is_not_finite_is_named(copy_of_merged: Path, tmp_path: Path) -> None:
    change_weights(copy_of_merged, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].fill_(float("nan")))
    with pytest.raises(QuantisingError, match=r"layers\.0\.mlp\.up_proj\.weight has values that are not finite"):
        export_gguf(copy_of_merged, tmp_path / "model.gguf", "int8")


@pytest.mark.parametrize("config", [{"precision": "int2"}, {"gate_prompts": 0}, {"max_new_tokens": 0}])
def test_a_configuration_that_cannot_work_names_its_field(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        QuantiseConfig(**config)
