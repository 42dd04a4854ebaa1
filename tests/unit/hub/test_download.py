"""Names that are neither a folder nor a model of the hub, and how sizes are told."""

import pytest

from vlmtune.errors import VlmtuneError
from vlmtune.hub.download import checkpoint_folder, size_text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/nowhere/model", "there is no folder /nowhere/model"),
        ("../../model", "there is no folder ../../model"),
        ("org/mo del", "org/mo del is neither a folder nor a hub id"),
        ("org/model", "org/model is not in the local cache and the hub cannot be reached"),
    ],
)
def test_a_name_that_leads_nowhere(name, said):
    with pytest.raises(VlmtuneError) as raised:
        checkpoint_folder(name, None)
    assert said in raised.value.message and raised.value.hint


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (12_345, "12 kB"), (999_600_000, "1.0 GB"), (14_130_000_000, "14.1 GB")],
)
def test_sizes_as_people_read_them(num_bytes, text):
    assert size_text(num_bytes) == text
