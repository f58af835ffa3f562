"""What machines cost by the hour, in one dated table: list prices on demand, no discounts, no disks, no traffic, no taxes.

What a script costs on them is reckoned in `latency.py`; the prices of hosted models are in `teaching/gemini_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
