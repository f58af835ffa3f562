"""The stand-in model, fetching, and telling base models apart."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from newsjuice_pipelines.podcast.training.base_model import (
    BaseModelError,
    base_identity,
    count_parameters,
    differing_files,
    fetch_base_model,
    load_model,
    load_tokenizer,
    tensor_shapes,
)
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, TinyModelError, build_tiny, token_stream, unigram_loss

MESSAGES = [{"role": "system", "content": "Write."}, {"role": "user", "content": "News."}]


class Hub(BaseHTTPRequestHandler):
    """A hub that has nothing; why is in `code`, as the real one says it."""

    code = ""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def copied_base(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_pre_training_beats_a_unigram_model_on_documents_it_never_saw(
    micro_config: TinyConfig, make_article: Callable[[int], str], tmp_path: Path
) -> None:
    facts = build_tiny([make_article(number) for number in range(60)], micro_config, tmp_path)

    assert facts["held_out_loss_nats"] < facts["unigram_loss_nats"] - 1.0
    assert facts["held_out_documents"] == 6
    assert facts["parameters"] == count_parameters(tmp_path)


def test_two_builds_of_one_recipe_are_the_same_model(
    micro_config: TinyConfig, make_article: Callable[[int], str], tmp_path: Path
) -> None:
    identities = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        build_tiny([make_article(number) for number in range(20)], replace(micro_config, steps=3), tmp_path / name)
        identities.add(base_identity(tmp_path / name)["identity"])

    assert len(identities) == 1


@pytest.mark.parametrize(
    "text", ["naïve café — “quoted”", "emoji 🎙️ and 漢字", "tabs\tand\n\n\nlines", "12,345.67 % of U.S. people's"]
)
def test_the_tokenizer_keeps_bytes_that_its_training_text_lacks(base: Path, text: str) -> None:
    tokenizer = load_tokenizer(base)

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_prompt_without_thinking_is_the_beginning_of_the_whole_conversation(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    answer = {"role": "assistant", "content": "Hello."}

    whole = tokenizer.apply_chat_template([*MESSAGES, answer], tokenize=False, enable_thinking=False)

    assert whole == prompt + "Hello.<|im_end|>\n"


def test_the_prompt_with_thinking_leaves_the_thinking_block_to_the_model(base: Path) -> None:
    prompt = load_tokenizer(base).apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)

    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_document_that_spells_a_control_token_does_not_train_it(base: Path) -> None:
    tokenizer = load_tokenizer(base)

    stream = token_stream(tokenizer, ["One <|im_end|> two.", "Three."])

    assert tokenizer.eos_token_id not in stream
    assert tokenizer.decode(stream) == "One <|im_end|> two.<|endoftext|>Three.<|endoftext|>"


def test_every_second_training_document_is_a_turn_of_the_chat(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    turn = tokenizer.apply_chat_template([{"role": "assistant", "content": "Two."}], tokenize=False)

    stream = token_stream(tokenizer, ["One.", "Two.", "Three."], turns=True)

    assert tokenizer.decode(stream) == f"One.<|endoftext|>{turn}<|endoftext|>Three.<|endoftext|>"


def test_the_unigram_loss_of_a_uniform_text_is_the_logarithm_of_its_vocabulary() -> None:
    assert unigram_loss([0, 1, 2, 3] * 1000, [0, 1, 2, 3], 4) == pytest.approx(1.3863, abs=1e-3)


def test_a_handful_of_texts_is_refused(micro_config: TinyConfig, tmp_path: Path) -> None:
    with pytest.raises(TinyModelError, match="at least 10 different texts, got 1"):
        build_tiny(["one text"] * 50, micro_config, tmp_path)


def test_a_shape_that_does_not_fit_is_refused(micro_config: TinyConfig, tmp_path: Path) -> None:
    with pytest.raises(TinyModelError, match="hidden_size 65"):
        build_tiny([], replace(micro_config, hidden_size=65), tmp_path)


def test_a_local_folder_is_copied_with_its_identity(base: Path, tmp_path: Path) -> None:
    facts = fetch_base_model(str(base), "", tmp_path)

    assert facts["identity"] == base_identity(base)["identity"]
    assert facts["architecture"] == "qwen3"


def test_the_fetched_copy_computes_what_the_original_computes(base: Path, tmp_path: Path) -> None:
    import torch

    fetch_base_model(str(base), "", tmp_path)
    ids = torch.tensor([[5, 6, 7]])

    with torch.inference_mode():
        assert torch.equal(load_model(base)(ids).logits, load_model(tmp_path)(ids).logits)


def test_pickled_weights_are_refused(copied_base: Path, tmp_path: Path) -> None:
    (copied_base / "model.safetensors").rename(copied_base / "pytorch_model.bin")

    with pytest.raises(BaseModelError, match=r"no \.safetensors weights"):
        fetch_base_model(str(copied_base), "", tmp_path)


def test_a_base_without_a_chat_template_is_refused(copied_base: Path, tmp_path: Path) -> None:
    (copied_base / "chat_template.jinja").unlink()

    with pytest.raises(BaseModelError, match="no chat template"):
        fetch_base_model(str(copied_base), "", tmp_path)


def test_a_base_that_brings_its_own_code_is_refused(copied_base: Path, tmp_path: Path) -> None:
    config = json.loads((copied_base / "config.json").read_text())
    (copied_base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "model.Model"}}))

    with pytest.raises(BaseModelError, match="never run here"):
        fetch_base_model(str(copied_base), "", tmp_path)


def test_a_hub_model_needs_a_commit(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"'main' of Qwen/Qwen3-0\.6B is not a commit"):
        fetch_base_model("Qwen/Qwen3-0.6B", "main", tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "no-owner"])
def test_a_folder_that_is_not_there_is_not_looked_up_on_the_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="there is no folder"):
        fetch_base_model(name, "", tmp_path)


def test_one_changed_weight_makes_another_identity(copied_base: Path, base: Path) -> None:
    weights = copied_base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    assert base_identity(copied_base)["identity"] != base_identity(base)["identity"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("RevisionNotFound", "has no revision 0{40}: set NEWSJUICE_BASE_MODEL_REVISION to a commit"),
        ("RepoNotFound", "the hub has no model Qwen/Qwen3-0.6B"),
        ("GatedRepo", "asks for an agreement first"),
        ("", "could not be downloaded .* or download it elsewhere"),
    ],
)
def test_a_hub_that_does_not_have_it_is_told_apart(hub: type[Hub], code: str, advice: str, tmp_path: Path) -> None:
    hub.code = code

    with pytest.raises(BaseModelError, match=advice) as caught:
        fetch_base_model("Qwen/Qwen3-0.6B", "0" * 40, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_files_that_make_two_models_different_are_named(copied_base: Path, base: Path) -> None:
    (copied_base / "tokenizer.json").unlink()
    (copied_base / "config.json").write_text((copied_base / "config.json").read_text() + "\n")

    names = differing_files(base_identity(base)["files"], base_identity(copied_base)["files"])

    assert names == ["config.json", "tokenizer.json"]


def test_the_shapes_of_a_weights_file_are_read_without_loading_it(base: Path, micro_config: TinyConfig) -> None:
    shapes = tensor_shapes(base / "model.safetensors")

    assert shapes["model.embed_tokens.weight"] == (micro_config.vocab_size, micro_config.hidden_size)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\x00\x00\x00\x00\x00\x00\x00nojsn"])
def test_a_file_that_is_not_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(BaseModelError, match="not a whole safetensors file"):
        tensor_shapes(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_loads_and_computes_on_a_cpu(base: Path, dtype: str) -> None:
    import torch

    with torch.inference_mode():
        logits = load_model(base, dtype)(torch.tensor([[5, 6, 7]])).logits

    assert logits.dtype == getattr(torch, dtype)
    assert logits.isfinite().all()
