"""What several GPUs take of each for their sums: NCCL's, outside of PyTorch's allocator."""

NCCL_SETTINGS = {"NCCL_MAX_NCHANNELS": "2", "NCCL_BUFFSIZE": str(2**20)}
"""One sum a step needs few channels and small buffers, and NCCL holds those for the whole run."""
NCCL_BYTES = 846 * 2**20
"""Two H100s over NVLink, NCCL of torch 2.11: 372 MiB at the start and 474 MiB at the first sum, its own settings."""

GATHER_BYTES = 230 * 2**20
"""The same GPUs, at the first gather."""


def communication_bytes(num_gpus: int, sharded: bool) -> int:
    """Return what each of so many GPUs gives to NCCL."""
    return (NCCL_BYTES + GATHER_BYTES * sharded) * (num_gpus > 1)
