"""Arrays beside a table: what was kept, or nothing."""

import numpy as np
import pytest

from vlmtune.data.table.kept import keep_array, kept_array

OTHERWISE = np.zeros(100, np.int32)


def test_what_was_kept_comes_back(tmp_path):
    keep_array(tmp_path / "a.npy", np.arange(100, dtype=np.int32))
    assert kept_array(tmp_path / "a.npy", OTHERWISE).tolist() == list(range(100))


@pytest.mark.parametrize("place", [0, 300, -1])
def test_a_flipped_bit_is_nothing(tmp_path, place):
    keep_array(tmp_path / "a.npy", np.arange(100, dtype=np.int32))
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[place] ^= 1
    (tmp_path / "a.npy").write_bytes(content)
    assert kept_array(tmp_path / "a.npy", OTHERWISE) is OTHERWISE
