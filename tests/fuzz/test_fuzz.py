"""Whatever is in a file: it is read, or one error says what is wrong, soon and within the memory that there is.

`make test` tries a share, the same each time; `make fuzz` tries 20,000 inputs (VLMTUNE_FUZZ), others each time.
"""

import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from fuzz import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmtune.errors import VlmtuneError

IN_SUITE = 150
NUM_INPUTS = int(os.environ.get("VLMTUNE_FUZZ", IN_SUITE))
MAX_S = 60
MAX_BYTES = 2**30
UNIT_BYTES = 1024 if sys.platform == "linux" else 1
"""Of what the system counts memory in."""


@pytest.fixture(scope="module", autouse=True)
def good_files(tmp_path_factory):
    targets.keep_in(tmp_path_factory.mktemp("good"))


def _too_slow(*_: object) -> None:
    pytest.fail(f"one input took more than {MAX_S} s")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT_BYTES


@pytest.mark.parametrize("name", targets.TARGETS)
def test_an_input_is_read_or_refused(name):
    target = targets.TARGETS[name]

    @settings(
        max_examples=max(3, round(NUM_INPUTS * target.share)),
        deadline=None,
        database=None,
        derandomize=NUM_INPUTS == IN_SUITE,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**63))
    def try_one(seed: int) -> None:
        before = _peak_bytes()
        signal.alarm(MAX_S)
        try:
            with tempfile.TemporaryDirectory() as folder:
                target.read(Path(folder), random.Random(seed))
        except VlmtuneError as error:
            assert error.message
        finally:
            signal.alarm(0)
        assert _peak_bytes() - before < MAX_BYTES

    signal.signal(signal.SIGALRM, _too_slow)
    try_one()
