"""What sums over rows take besides their result: the partial sums of the blocks that share an output.

ATen/native/cuda/Reduce.cuh, `setReduceConfig`, for sums over the leading dimensions of rows that lie one after the
other: the gradients of biases and of norms' weights. Other sums are shared by few outputs, and take next to nothing.
"""

from math import ceil

FP32_BYTES = 4
MAX_THREADS, WARP = 512, 32
MIN_VALUES, MAX_VALUES = 16, 256
"""Values that a thread adds up: fewer are not worth another block, more are."""
OUTPUTS_AT_ONCE = (4, 2, 1)
SEMAPHORE_BYTES = 4


def threads_per_sm(sm: tuple[int, int]) -> int:
    """Return how many threads a multiprocessor holds. CUDA programming guide, compute capabilities."""
    if sm == (7, 5):
        return 1024
    return 1536 if sm[0] == 12 or (sm[0] == 8 and sm[1] > 0) else 2048


def partial_sums_bytes(num_rows: int, num_outputs: int, num_sms: int, sm: tuple[int, int]) -> tuple[int, ...]:
    """Return the blocks that a sum over rows takes: partial sums and semaphores, or none."""
    at_once = next(number for number in OUTPUTS_AT_ONCE if num_outputs % number == 0)
    width, height = _block(num_outputs // at_once, num_rows, MAX_THREADS // at_once)
    values, grid = ceil(num_rows / height), ceil(num_outputs // at_once / width)
    enough = num_sms * (threads_per_sm(sm) // (width * height))
    if values < MAX_VALUES or grid > enough:
        return ()
    shares = max(min(ceil(enough / grid), ceil(values / MIN_VALUES)), ceil(values / MAX_VALUES))
    if shares == 1:
        return ()
    return FP32_BYTES * num_outputs * shares * width * at_once, SEMAPHORE_BYTES * grid


def _block(num_outputs: int, num_rows: int, max_threads: int) -> tuple[int, int]:
    outputs, rows = (min(_last_power_of_2(number), max_threads) for number in (num_outputs, num_rows))
    width = min(outputs, WARP)
    height = min(rows, max_threads // width)
    return min(outputs, max_threads // height), height


def _last_power_of_2(number: int) -> int:
    return 1 << (number.bit_length() - 1)
