"""Training in several processes on this machine, one a GPU: starting them through torchrun, hearing them, ending them.

A worker is `python -m newsjuice_pipelines.podcast.training.processes JOB.json`; torchrun or `accelerate launch` can also
start workers by hand. What a worker does is `train_adapter` in `finetune.py`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import newsjuice_pipelines
from newsjuice_pipelines.podcast.training.base_model import BaseModelError
from newsjuice_pipelines.podcast.training.chat_tokens import ChatTemplateError
from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
from newsjuice_pipelines.podcast.training.halved_batch import OutOfMemory
from newsjuice_pipelines.podcast.training.trainer import steps_per_process
from newsjuice_pipelines.podcast.training.training_log import TrainingDiverged
from newsjuice_pipelines.podcast.training.training_memory import memory_advice
from newsjuice_pipelines.podcast.training.training_rows import FinetuneError
from newsjuice_pipelines.runtime.leased_gpu import VISIBLE, count_gpus
from newsjuice_pipelines.runtime.tracking import Tracker

logger = logging.getLogger("newsjuice.finetune")

FACTS = "facts.json"
STOP_WITH_STDIN = "--stop-with-stdin"
KEPT_LINES = 40
KILLED = re.compile(r"exitcode\s*: -9\b|Signal 9\b")  # as torchrun words it
PATIENCE_S = 10.0  # between asking processes to end and ending them
ERRORS: Mapping[str, Callable[[str], Exception]] = {
    error.__name__: error for error in (FinetuneError, TrainingDiverged, BaseModelError, ChatTemplateError)
}


class ProcessesError(RuntimeError):
    """A training process ended without saying why in words of this package."""


def is_worker() -> bool:
    """Whether torchrun or `accelerate launch` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_count(config: FinetuneConfig) -> int:
    """How many processes train: as configured, or (0) as many of the GPUs as can share the accumulation steps evenly.

    Raises:
        FinetuneError: more processes than GPUs, or a number that cannot share the accumulation steps.
    """
    gpus = count_gpus()
    if config.processes == 0:
        count = max(number for number in range(1, max(1, gpus) + 1) if config.accumulation_steps % number == 0)
        if count < gpus:
            logger.info("using %d of %d GPUs, which share accumulation_steps %d evenly", count, gpus, config.accumulation_steps)
        return count
    if gpus and config.processes > gpus:
        raise FinetuneError(
            f"processes is {config.processes}, but there are {gpus} GPUs: lower it, or set 0 for one process a GPU."
        )
    steps_per_process(config, config.processes)
    return config.processes


def train_in_processes(
    count: int,
    base: Path,
    dataset: Path,
    config: FinetuneConfig,
    out: Path,
    scratch: Path,
    tracker: Tracker | None,
    gpus: Sequence[str] = (),
) -> dict[str, Any]:
    """Train in `count` processes and return the facts of the first; their log lines come out of this process's loggers.

    `gpus` are the names of the GPUs that the processes see, one each; none given: all that there are.

    Raises:
        OutOfMemory: a worker's memory ran out.
        FinetuneError, TrainingDiverged, BaseModelError, ChatTemplateError: as a worker raised it.
        ProcessesError: a worker died otherwise; holds the last lines it wrote.
    """
    logger.info("training in %d processes", count)
    with tempfile.TemporaryDirectory(prefix="newsjuice-") as name:
        folder = Path(name)
        job = folder / "job.json"
        write_job(job, base, dataset, replace(config, processes=count), out, scratch, tracker)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)),
                *("--module", __name__, str(job), STOP_WITH_STDIN),
            ],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends: the workers' sign to end too
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(count, gpus),
            start_new_session=True,
            text=True,
            errors="replace",
        )
        last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not _pass_on(line):
                    last_lines.append(line.rstrip())
            code = process.wait()
        finally:
            _end(process)
        facts = folder / FACTS
        if code == 0 and facts.is_file():
            found: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
            return found
        raise _error_of(folder, code, last_lines, replace(config, processes=count))


def write_job(
    job: Path, base: Path, dataset: Path, config: FinetuneConfig, out: Path, scratch: Path, tracker: Tracker | None
) -> None:
    """Write what the workers need to know; they put `facts.json`, or their errors, beside it."""
    folders = {"base": base, "dataset": dataset, "out": out, "scratch": scratch}
    described = {
        **{name: str(folder.absolute()) for name, folder in folders.items()},
        "config": asdict(config),
        "tracker": None if tracker is None else {**asdict(tracker), "directory": str(tracker.directory.absolute())},
    }
    job.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def work(job: Path) -> int:
    """Train as the job file says; the exit status. Facts, or the error with its type, are written beside the job."""
    from newsjuice_pipelines.podcast.training.finetune import train_adapter

    described = json.loads(job.read_text(encoding="utf-8"))
    folders = {name: Path(described[name]) for name in ("base", "dataset", "out", "scratch")}
    tracker = described["tracker"]
    rank = os.environ.get("RANK", "0")
    try:
        facts = train_adapter(
            config=FinetuneConfig(**described["config"]),
            tracker=None if tracker is None else Tracker(**{**tracker, "directory": Path(tracker["directory"])}),
            **folders,
        )
    except Exception as error:
        report = {"type": type(error).__name__, "message": str(error), "batch_size": getattr(error, "batch_size", 0)}
        (job.parent / f"error-{rank}.json").write_text(json.dumps(report), encoding="utf-8")
        logger.exception("process %s failed", rank)
        return 1
    if rank == "0":
        (job.parent / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return 0


class _LineFormatter(logging.Formatter):
    """One JSON line a record, so that the process that reads it can log it again."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return json.dumps({"newsjuice": record.name, "level": record.levelno, "message": message})


def _pass_on(line: str) -> bool:
    """Log a worker's line again; False when it is not one of ours."""
    try:
        record = json.loads(line)
        logging.getLogger(record["newsjuice"]).log(record["level"], "%s", record["message"])
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _environment(count: int, gpus: Sequence[str]) -> dict[str, str]:
    """The workers' environment: this package importable, the cores shared among them, and only these GPUs to be seen."""
    package_root = str(Path(newsjuice_pipelines.__file__).parents[1])
    threads = max(1, (os.cpu_count() or 1) // count)
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    seen = {VISIBLE: ",".join(gpus)} if gpus else {}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **seen, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _end(process: subprocess.Popen[str]) -> None:
    """End the processes of the group, if they have not ended: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(PATIENCE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _error_of(folder: Path, code: int, last_lines: Sequence[str], config: FinetuneConfig) -> Exception:
    """The error to raise for failed workers: one of this package's when a worker met it, else what is known.

    A worker that is killed writes nothing; what the others report then is only that they lost it.
    """
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("error-*.json"))]
    for report in reports:
        if report["type"] == OutOfMemory.__name__:
            return OutOfMemory(report["message"], report["batch_size"])
        if report["type"] in ERRORS:
            return ERRORS[report["type"]](report["message"])
    report = f"{reports[0]['type']}: {reports[0]['message']}" if reports else ""
    lines = "\n".join(last_lines)
    if any(KILLED.search(line) for line in last_lines):
        return ProcessesError(
            "a training process was killed, as the system does when this machine's (or its container's) memory runs out. "
            f"{memory_advice(config, sharing=config.processes)}\n"
            + (f"Another process then failed: {report}" if report else lines)
        )
    if report:
        return ProcessesError(f"a training process failed: {report}")
    return ProcessesError(f"a training process ended with status {code} and no error of its own.\n{lines}")


def _end_with(descriptor: int) -> None:
    """End this process when a file descriptor closes, which is when the process that started it has gone."""
    while os.read(descriptor, 1):  # not through sys.stdin, whose lock a daemon thread must not hold at exit
        pass
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Entry point of a worker: a job file, and `--stop-with-stdin` when the starting process holds our standard input."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter() if STOP_WITH_STDIN in arguments else logging.Formatter("%(name)s: %(message)s"))
    ours = logging.getLogger("newsjuice")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    if STOP_WITH_STDIN in arguments:
        threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    jobs = [argument for argument in arguments if not argument.startswith("--")]
    if len(jobs) != 1:
        print(f"usage: python -m {__spec__.name} JOB.json", file=sys.stderr)
        return 2
    status = work(Path(jobs[0]))
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
