"""`newsjuice bench`: measures a part against the original recipe on this machine, prints the table, and keeps both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from newsjuice_pipelines.runtime.reports import write_json

# Each name is a module of `benchmarks/` with `run() -> dict` and `table(dict) -> str`, and perhaps `write_plot(dict, path)`.
BENCHMARKS = {
    "chunks": ("chunks",),
    "teacher": ("teacher", "ledger"),
    "finetune": ("finetune",),
    "inference": ("inference",),
    "engines": ("cpu_engines",),
    "classifier": ("classifier",),
    "orchestration": ("orchestration",),
    "defects": ("defects", "classifier_defects"),
}
ON_REAL_DATA = ("classifier", "defects")  # their `run` takes a folder of articles and headlines


def bench(name: str, out: Path | None, command: Sequence[str], data: Path | None = None) -> int:
    """Run one benchmark; with `out`, write NAME.json, NAME.md and plots there. Returns the exit status.

    Raises:
        ValueError: `data` is given, and this benchmark does not use data of one's own.
    """
    if data is not None and name not in ON_REAL_DATA:
        raise ValueError(f"newsjuice bench {name} makes its own data: leave --data out.")
    results, pages = {}, []
    for part in BENCHMARKS[name]:
        module = import_module(f"newsjuice_pipelines.benchmarks.{part}")
        print(f"── {part}", file=sys.stderr, flush=True)
        results[part] = module.run() if data is None else module.run(data)
        pages.append(module.table(results[part]))
        print(f"{pages[-1]}\n", flush=True)
        if out is not None and hasattr(module, "write_plot"):
            out.mkdir(parents=True, exist_ok=True)
            module.write_plot(results[part], out / f"{part}.png")
            pages.append(f"![{part}]({part}.png)")
    if out is not None:
        machine = next(iter(results.values()))["machine"]
        described = f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}"
        page = [f"# `newsjuice bench {name}`", f"Made by `{' '.join(command)}` on {described}.", *pages]
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", results)
        (out / f"{name}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return 0
