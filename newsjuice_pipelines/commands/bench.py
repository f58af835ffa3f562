"""`newsjuice bench`: measures a part against the original recipe on this machine, prints the table, and keeps both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from newsjuice_pipelines.runtime.reports import write_json

# Each name is a module of `benchmarks/` with `run() -> dict` and `table(dict) -> str`.
BENCHMARKS = {
    "chunks": ("chunks",),
    "teacher": ("teacher", "ledger"),
}


def bench(name: str, out: Path | None, command: Sequence[str]) -> int:
    """Run one benchmark; with `out`, write NAME.json and NAME.md there. Returns the exit status."""
    from importlib import import_module

    results, tables = {}, []
    for part in BENCHMARKS[name]:
        module = import_module(f"newsjuice_pipelines.benchmarks.{part}")
        print(f"── {part}", file=sys.stderr, flush=True)
        results[part] = module.run()
        tables.append(module.table(results[part]))
        print(f"{tables[-1]}\n", flush=True)
    if out is not None:
        machine = next(iter(results.values()))["machine"]
        described = f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}"
        page = [f"# `newsjuice bench {name}`", f"Made by `{' '.join(command)}` on {described}.", *tables]
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", results)
        (out / f"{name}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return 0
