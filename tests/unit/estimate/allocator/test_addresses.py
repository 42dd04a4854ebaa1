"""Where the driver puts segments."""

from vlmtune.estimate.allocator.addresses import (
    CHUNK_STEP_BYTES,
    LIBRARY_BYTES,
    TOP_ADDRESS,
    AddressesWithCode,
    DriverAddresses,
)
from vlmtune.units import MIB


def _placed(*sizes):
    """Returns the addresses of these sizes in MiB, in MiB below the top."""
    driver = DriverAddresses()
    return driver, [(TOP_ADDRESS - driver.take(size * MIB)) // MIB for size in sizes]


def test_chunks_of_32_mib_steps_lie_one_below_the_other():
    assert CHUNK_STEP_BYTES == 32 * MIB
    assert _placed(20, 18, 44, 32, 33)[1] == [32, 64, 128, 160, 224]


def test_the_lowest_room_of_an_open_chunk_is_filled_first():
    assert _placed(20, 20, 2, 12, 12, 10)[1] == [32, 64, 44, 12, 96, 84]


def test_what_was_given_back_is_taken_again():
    driver, below = _placed(60, 20, 10, 20)
    first, second, third, _ = (TOP_ADDRESS - mib * MIB for mib in below)
    driver.give_back(second, 20 * MIB)
    assert driver.take(20 * MIB) == second
    driver.give_back(second, 20 * MIB)
    driver.give_back(third, 10 * MIB)
    assert driver.take(32 * MIB) == second, "a free chunk is a hole again, the highest that fits"
    driver.give_back(second, 32 * MIB)
    driver.give_back(first, 60 * MIB)
    assert driver.take(96 * MIB) == second, "holes merge"
    driver.give_back(second, 96 * MIB)
    driver.give_back(TOP_ADDRESS - below[3] * MIB, 20 * MIB)
    assert (driver.holes, driver.rooms, driver.chunks) == ([(0, TOP_ADDRESS)], [], {})


def test_chunks_do_not_merge_while_they_are_in_use():
    driver, _ = _placed(32, 20, 20)
    assert driver.take(13 * MIB) == TOP_ADDRESS - 128 * MIB
    driver, below = _placed(20, 12, 20, 12)
    # The end of the lower chunk and the start of the upper one are free, and touch.
    driver.give_back(TOP_ADDRESS - below[0] * MIB, 20 * MIB)
    driver.give_back(TOP_ADDRESS - below[3] * MIB, 12 * MIB)
    assert driver.take(30 * MIB) == TOP_ADDRESS - 96 * MIB


def _placed_with_code(*sizes):
    driver = AddressesWithCode()
    return driver, [(TOP_ADDRESS - driver.take(size * MIB)) // MIB for size in sizes]


def test_below_the_first_segment_lies_a_chunk_for_code_which_is_filled_upwards():
    """As in the histories of native segments: 478 to 80 MiB below the first segment."""
    _, below = _placed_with_code(20, 20, 20, 2, 300, 2, 100, 2)
    assert [place - below[0] for place in below[1:]] == [478, 458, 438, 436, 136, 640, 540]


def test_libraries_take_of_what_the_loaded_model_gave_back():
    driver, below = _placed_with_code(20, 380, 250, 4)
    weights = TOP_ADDRESS - below[2] * MIB
    driver.give_back(weights, 250 * MIB)
    assert driver.take(40 * MIB) == weights + 3 * LIBRARY_BYTES, "as many as there is room for"
    driver.give_back(weights + 3 * LIBRARY_BYTES, 40 * MIB)
    assert driver.take(40 * MIB) == weights + 3 * LIBRARY_BYTES, "once"
