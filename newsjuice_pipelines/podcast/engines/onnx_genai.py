"""A quantised model on the CPU through ONNX Runtime GenAI, one request at a time. Needs the extra `cpu-engine`.

Its 4-bit weights give other tokens than the model they come from, so it is no default before its quality is gated.
Exporting the model to ONNX is part of opening the engine; nothing of the export outlives it.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from newsjuice_pipelines.podcast.engines import Capabilities, EngineError, Request, Result
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel, refuse_altering_settings
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import end_token_ids
from newsjuice_pipelines.runtime.devices import Device

logger = logging.getLogger("newsjuice.engines")

Precision = Literal["int4", "int8", "fp32"]
# The exporter needs onnx and onnx_ir, which the run-time package does not pull in.
PACKAGES = ("onnx", "onnx_ir", "onnxruntime_genai")
SHOWN_OUTPUT_CHARACTERS = 1500


class OnnxGenaiEngine:
    """Greedy decoding of an ONNX export of the model; measures the time to the first token of each request.

    Args:
        model: a local model folder with tokenizer and chat template.
        device: the CPU.
        precision: number format of the exported weights; `fp32` gives the tokens of the reference engine.

    Raises:
        EngineError: the extra is not installed, the device is no CPU, the model cannot be exported, or its generation
            configuration asks for more than greedy decoding.
    """

    def __init__(self, model: Path, device: Device, precision: Precision = "int4") -> None:
        if device.type != "cpu":
            raise EngineError(f"onnx_genai runs on the CPU, not on {device.type}: leave the device out or say cpu.")
        genai = _import_genai()
        loaded = _without_weights(model, device)
        self._precision = precision
        self._folder = tempfile.TemporaryDirectory(prefix="newsjuice-onnx-")
        try:
            exported = Path(self._folder.name) / "model"
            _export(model, exported, precision)
            _configure(exported, loaded.end_ids)
            loaded.model = genai.Model(str(exported))
        except BaseException:
            self._folder.cleanup()
            raise
        self._loaded = loaded

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        device = self._loaded.device
        return Capabilities("onnx_genai", f"{device.type}: {device.name}", self._precision, 1, True, self._loaded.context_tokens)

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests in their order."""
        for request in requests:
            yield self._answer(request)

    def close(self) -> None:
        """Free the model's memory and remove the exported files."""
        self._loaded.close()
        self._folder.cleanup()

    def _answer(self, request: Request) -> Result:
        loaded = self._loaded
        prompt = loaded.encode(request)
        refused = loaded.too_long(request, len(prompt))
        if refused is not None:
            return refused
        started = time.perf_counter()
        ttft_s: float | None = None
        tokens: list[int] = []
        try:
            generator = self._new_generator(len(prompt) + request.max_new_tokens)
            generator.append_tokens(prompt)
            while len(tokens) < request.max_new_tokens and (not tokens or tokens[-1] not in loaded.end_ids):
                generator.generate_next_token()
                tokens.append(int(generator.get_next_tokens()[0]))
                if ttft_s is None:
                    ttft_s = time.perf_counter() - started
        except RuntimeError as error:  # the one type that ONNX Runtime raises, out of memory included
            return loaded.failure(request, len(prompt), f"ONNX Runtime failed after {len(tokens)} tokens: {error}")
        return loaded.answer(request, len(prompt), tokens, ttft_s, time.perf_counter() - started)

    def _new_generator(self, max_length: int) -> Any:
        """A greedy generator with room for `max_length` tokens, the prompt's included."""
        import onnxruntime_genai as genai

        parameters = genai.GeneratorParams(self._loaded.model)
        parameters.set_search_options(do_sample=False, num_beams=1, batch_size=1, max_length=max_length)
        return genai.Generator(self._loaded.model, parameters)


def _import_genai() -> Any:
    """The run-time package, with its usage reports to the vendor, on by default, switched off before it loads."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        for package in PACKAGES:
            module = importlib.import_module(package)
    except ImportError as error:
        raise EngineError(
            f"the engine onnx_genai needs the package {error.name or package}: pip install 'newsjuice-pipelines[cpu-engine]'."
        ) from error
    return module


def _without_weights(path: Path, device: Device) -> LoadedModel:
    """Tokenizer, end tokens and limits of the folder `path`; the model itself follows from the export."""
    from transformers import AutoConfig, GenerationConfig

    tokenizer = load_tokenizer(path)
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    own = (
        GenerationConfig.from_pretrained(path, local_files_only=True)
        if (path / "generation_config.json").is_file()
        else GenerationConfig.from_model_config(config)
    )
    refuse_altering_settings(own, path)
    return LoadedModel(None, tokenizer, device, end_token_ids(tokenizer, own), config.max_position_embeddings)


def _export(model: Path, out: Path, precision: Precision) -> None:
    """Write the ONNX form of `model` into `out`, in a process of its own, so that its memory is free afterwards."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model.resolve()), "-o", str(out)]
    command += ["-p", precision, "-e", "cpu", "-c", str(out.parent / "cache")]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=out.parent,  # `-m` imports from the working directory first: one that holds nothing
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise EngineError(
            f"{model} could not be exported to ONNX in {precision} (exit code {done.returncode}): choose another engine, or a "
            f"model that ONNX Runtime GenAI supports. The end of the exporter's output:\n"
            f"{done.stdout.strip()[-SHOWN_OUTPUT_CHARACTERS:]}"
        )
    logger.info("exported %s to ONNX in %s in %.1f s", model, precision, time.perf_counter() - started)


def _configure(exported: Path, end_ids: list[int]) -> None:
    """Give the exported model the threads that PyTorch uses here (its own default is one) and this project's end tokens."""
    import torch

    file = exported / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = torch.get_num_threads()
    config["model"]["eos_token_id"] = end_ids
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
