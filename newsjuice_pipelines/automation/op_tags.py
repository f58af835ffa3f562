"""Named op tags and pools, each with the reason it exists. A leaf module: it imports nothing of ours, and is data only."""

from typing import Any

# GPU steps in turn on a device: two training jobs on one run out of memory. `newsjuice dev` opens a slot for each device, and a
# step leases one that is free.
GPU_POOL = "gpu"

# Paid calls share one quota, and two runs must not spend it twice as fast as agreed.
VERTEX_POOL = "vertex"

# The Celery queue of the workers on GPU machines. Steps without the tag go to `dagster`, the queue of the others.
GPU_QUEUE = "gpu"

# What our Docker executor gives to the container of a step: arguments of Docker's `containers.create`.
CONTAINER_TAG = "newsjuice/container"

# All that an asset which wants a GPU carries; each executor reads its own part. Job tags would be lost by backfills.
GPU_OP_TAGS: dict[str, Any] = {
    # The Kubernetes executor: a GPU, a node that has one (the label of NVIDIA's GPU feature discovery), leave to run there, and
    # room in /dev/shm for data loaders.
    "dagster-k8s/config": {
        "container_config": {
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
            "volume_mounts": [{"name": "shm", "mount_path": "/dev/shm"}],  # noqa: S108 - the shared memory device of a container
        },
        "pod_spec_config": {
            "node_selector": {"nvidia.com/gpu.present": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "volumes": [{"name": "shm", "empty_dir": {"medium": "Memory", "size_limit": "8Gi"}}],
        },
    },
    # The Docker executor: the machine's GPUs, of which the step leases one, and shared memory.
    CONTAINER_TAG: {"device_requests": [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}], "shm_size": "8g"},
    # The Celery executor.
    "dagster-celery/queue": GPU_QUEUE,
}
