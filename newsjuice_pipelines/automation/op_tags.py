"""Named op tags and pools, each with the reason it exists. A leaf module: it imports nothing of ours."""

from typing import Any

# One GPU step at a time on a device: two training jobs on one run out of memory. `newsjuice dev` opens a slot for each device,
# and a step claims one that is free.
GPU_POOL = "gpu"

# Paid calls share one quota, and two runs must not spend it twice as fast as agreed.
VERTEX_POOL = "vertex"

# Read by the Kubernetes executor only: a GPU node, room in /dev/shm for data loaders. Job tags would be lost by backfills.
GPU_OP_TAGS: dict[str, Any] = {
    "dagster-k8s/config": {
        "container_config": {
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
            "volume_mounts": [{"name": "shm", "mount_path": "/dev/shm"}],  # noqa: S108 - the shared memory device of a container
        },
        "pod_spec_config": {
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "volumes": [{"name": "shm", "empty_dir": {"medium": "Memory", "size_limit": "8Gi"}}],
        },
    }
}
