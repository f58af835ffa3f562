"""What machines cost by the hour, in one dated table: list prices on demand, no discounts, no disks, no traffic, no taxes.

And what scripts cost on them; how many they write an hour is timed in `latency.py`. The prices of hosted models are in
`teaching/gemini_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AS_OF = "2026-11"

_BILLING_CATALOG = (
    "Google's billing catalog as collected in github.com/Cyclenerd/google-cloud-pricing-cost-calculator, pricing.yml"
)
_SILYBENCH = " as collected in github.com/tgarg01/silybench-data, gpu_prices.csv"
_RUNPOD = "runpod.io/pricing as collected in github.com/datareceipts/data-receipts"
_AZURE = "Azure's price list as collected in github.com/datareceipts/data-receipts"


@dataclass(frozen=True)
class Machine:
    """A machine that can be rented, and its price."""

    name: str
    provider: str
    region: str
    accelerator: str | None
    """Its GPU; None: it has none."""
    hourly_usd: float
    source: str
    seen_on: str
    """When the source gave this price; it may have changed since."""


MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("c4-highcpu-8", "Google Cloud", "us-central1", None, 0.3402, _BILLING_CATALOG, "2025-03-06"),
        Machine("n1-standard-16", "Google Cloud", "us-central1", None, 0.7600, _BILLING_CATALOG, "2025-03-06"),
        Machine("g2-standard-4", "Google Cloud", "us-west1", "L4 24 GB", 0.7068, _BILLING_CATALOG, "2025-03-06"),
        Machine("a2-highgpu-1g", "Google Cloud", "us-central1", "A100 40 GB", 3.6734, _BILLING_CATALOG, "2025-03-06"),
        Machine(
            "a3-highgpu-1g",
            "Google Cloud",
            "us-central1",
            "H100 80 GB",
            10.9791,
            f"Google's billing catalog{_SILYBENCH}",
            "2026-09-26",
        ),
        Machine("NC24ads-A100-v4", "Azure", "eastus", "A100 80 GB", 3.673, _AZURE, "2026-11-09"),
        Machine("NC40ads-H100-v5", "Azure", "eastus", "H100 94 GB", 6.98, _AZURE, "2026-11-09"),
        Machine("runpod-h100-sxm", "RunPod Secure Cloud", "any", "H100 80 GB", 3.99, _RUNPOD, "2026-11-09"),
        Machine("runpod-h200", "RunPod Secure Cloud", "any", "H200 141 GB", 4.59, f"runpod.io/pricing{_SILYBENCH}", "2026-09-25"),
    )
}


def find_machine(name: str) -> Machine:
    """The machine of that name.

    Raises:
        ValueError: it is not in the table.
    """
    if name not in MACHINES:
        raise ValueError(
            f"there is no price for the machine {name!r}: choose one of {', '.join(MACHINES)}, or give its price as hourly_usd."
        )
    return MACHINES[name]


def cost_of_scripts(
    machine: str | None,
    hourly_usd: float | None,
    device: str,
    batches: Sequence[Mapping[str, Any]],
    teacher_usd_per_1000: float | None,
) -> dict[str, Any]:
    """US dollars per 1,000 scripts at the batch size that writes most of them, on one machine that is never idle.

    A batch with errors is left out: failed requests free the machine for the others, so that they look faster than they are.
    """
    listed = None if machine is None or hourly_usd is not None else find_machine(machine)
    price_usd = hourly_usd if listed is None else listed.hourly_usd
    whole = [entry for entry in batches if entry["scripts_per_hour"] and not entry["errors"]]
    best = max(whole, key=lambda entry: entry["scripts_per_hour"], default=None)
    failed = ", ".join(str(entry["batch"]) for entry in batches if entry["errors"])
    left_out = f"batches with failed requests are left out ({failed} at once)" if failed else None
    why = None
    if price_usd is None:
        why = "neither a machine of the price table nor an hourly price is configured"
    elif best is None:
        why = left_out or "no batch was timed"
    elif listed is not None and device.partition(":")[0] == ("cpu" if listed.accelerator else "cuda"):
        other = "has a GPU" if listed.accelerator else "has no GPU"
        why = f"the machine {listed.name} {other}, but the scripts were timed on {device}"
    return {
        "machine": machine,
        "hourly_usd": price_usd,
        "price_source": ("configured" if listed is None else listed.source) if price_usd is not None else None,
        "price_seen_on": None if listed is None else listed.seen_on,
        "price_table": AS_OF,
        "batch": best["batch"] if best else None,
        "scripts_per_hour": best["scripts_per_hour"] if best else None,
        "student_usd_per_1000": 1000 * price_usd / best["scripts_per_hour"] if why is None and price_usd and best else None,
        "teacher_usd_per_1000": teacher_usd_per_1000,
        "why": why or left_out,
    }
