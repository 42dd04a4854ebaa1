"""What several GPUs take of each for their sums: NCCL's memory, outside of PyTorch's allocator, and time."""

from vlmtune.hardware.cards import Card

NCCL_SETTINGS = {"NCCL_MAX_NCHANNELS": "2", "NCCL_BUFFSIZE": str(2**20)}
"""One sum a step needs few channels and small buffers, and NCCL holds those for the whole run."""
NCCL_BYTES = 392 * 2**20
"""Two H200s over NVLink, torch 2.11, these settings; with NCCL's own 840 MiB, and 846 on two H100s."""
GATHER_BYTES = 32 * 2**20
"""At the first gather: a guess by the first sum, which takes a tenth so; NCCL's own settings took 230 MiB."""


def communication_bytes(num_gpus: int, sharded: bool) -> int:
    """Return what each of so many GPUs gives to NCCL."""
    return (NCCL_BYTES + GATHER_BYTES * sharded) * (num_gpus > 1)


LINKED_BYTES_PER_S, PCIE_BYTES_PER_S = 34e9, 10e9
"""Of a sum of 160 MB: two H200s over NVLink with the settings above, 4.7 ms; over PCIe nobody has measured it."""
LINKED_FROM_GB_S = 1900
"""Memory bandwidth of the cards that are sold with NVLink today."""


def bytes_per_s(card: Card) -> float:
    """Return how fast cards like this one are taken to add up or gather."""
    return LINKED_BYTES_PER_S if (card.bandwidth_gb_s or 0) > LINKED_FROM_GB_S else PCIE_BYTES_PER_S
