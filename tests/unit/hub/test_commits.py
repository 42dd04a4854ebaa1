"""What the hub library and the disk beneath it raise is one message each."""

import errno
import os

import pytest

from vlmtune.errors import VlmtuneError
from vlmtune.hub.commits import hub_errors


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_is_named(number):
    with (
        pytest.raises(VlmtuneError, match="^the hub's cache cannot be used: /proc/1/hub: ") as raised,
        hub_errors("org/model", None),
    ):
        raise OSError(number, os.strerror(number), "/proc/1/hub")
    assert raised.value.hint == "set HF_HOME to another folder"


def test_what_is_no_error_of_the_system_stays_one_of_ours():
    with pytest.raises(OSError, match="odd"), hub_errors("org/model", None):
        raise OSError("odd")
