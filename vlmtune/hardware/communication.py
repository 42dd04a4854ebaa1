"""What several GPUs take of each for their sums: NCCL's, outside of PyTorch's allocator."""

NCCL_SETTINGS = {"NCCL_MAX_NCHANNELS": "2", "NCCL_BUFFSIZE": str(2**20)}
"""One sum a step needs few channels and small buffers, and NCCL holds those for the whole run."""
NCCL_BYTES = 392 * 2**20
"""Two H200s over NVLink, torch 2.11, these settings; with NCCL's own 840 MiB, and 846 on two H100s."""
GATHER_BYTES = 32 * 2**20
"""At the first gather: a guess by the first sum, which takes a tenth so; NCCL's own settings took 230 MiB."""


def communication_bytes(num_gpus: int, sharded: bool) -> int:
    """Return what each of so many GPUs gives to NCCL."""
    return (NCCL_BYTES + GATHER_BYTES * sharded) * (num_gpus > 1)
