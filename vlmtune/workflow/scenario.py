"""A config as the user wrote it, made ready to be estimated: its rows read, its model found."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmtune.config.load import COMMAND_LINE, NO_DATA, LoadedConfig
from vlmtune.config.values import Values
from vlmtune.errors import given_as
from vlmtune.hardware.cards import Target
from vlmtune.printing import say

if TYPE_CHECKING:
    from vlmtune.data.types import Rows
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.hub.source import ModelSource


def open_scenario(
    loaded: LoadedConfig,
    target: Target,
    *,
    live: bool,
    tell: Callable[[Values], None] | None = None,
    needs_rows: bool = False,
) -> "Scenario":
    """Return the scenario of a config; without a data file it is that of the largest row that the config allows.

    With `needs_rows` a data file that is not there is an error: a plan for other rows would be taken for one for them.
    `live`: long work on the rows may be shown on a terminal.

    Raises:
        VlmtuneError: no such model, or rows that cannot be used.
    """
    from vlmtune.data.run_data import MeasuredRows
    from vlmtune.data.samples import require_good
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.estimate.given_rows import GivenRows
    from vlmtune.estimate.guessed_rows import GuessedRows
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.plan.prequantised import refuse_other_bits
    from vlmtune.workflow.rows import missing_file, read_training, with_commits
    from vlmtune.workflow.started import with_adapter

    quiet_libraries()
    loaded, _ = with_commits(loaded, {})
    config, rows = loaded.config, None
    missing = missing_file(loaded, config.data.train_path)
    if needs_rows or missing is None:
        on_bad_row, read = config.data.on_bad_row, read_training(loaded, live=live)
        train = MeasuredRows(require_good(read.rows, on_bad_row), on_bad_row)
        held_out = read.held_out or _held_out(loaded, live, needs_rows)
        val = MeasuredRows(require_good(held_out, on_bad_row) if held_out else (), on_bad_row)
        rows = GivenRows(train, val, read.files)
    elif config.data.train_path != NO_DATA:
        say(f"there is no data file {missing}: estimated for the largest row that the config allows", err=True)
    source = with_adapter(loaded, _source(loaded, needs_tokenizer=rows is not None))
    if rows and source.catalogued:
        rows = GuessedRows(rows, source, config.data.on_bad_row)
        say(_told_of_guess(config.model.name), err=True)
    refuse_other_bits(loaded, source.facts(config.model.name))
    return Scenario(loaded, source, target, rows, **({"tell": tell} if tell else {}))


def _held_out(loaded: LoadedConfig, live: bool, needs_rows: bool) -> "Rows | None":
    """Return the rows of `data.val_path`; None where there are none, or their file is not there and may be missing."""
    from vlmtune.workflow.rows import missing_file, read_rows

    val_path = loaded.config.data.val_path
    if val_path is None:
        return None
    if not needs_rows and (missing := missing_file(loaded, val_path)):
        say(f"there is no data file {missing}: estimated without held-out rows", err=True)
        return None
    return read_rows(loaded, val_path, live=live).rows


def _source(loaded: LoadedConfig, *, needs_tokenizer: bool) -> "ModelSource":
    """Return the model's source: that of the catalogue, where no tokenizer is needed or the hub is out of reach."""
    from vlmtune.catalog import find_entry
    from vlmtune.hub.commits import OutOfReach
    from vlmtune.hub.source import open_model

    model = loaded.config.model
    word = "--model" if loaded.sources["model.name"] == COMMAND_LINE else "model.name"
    try:
        with given_as("model.name", word):
            return open_model(model.name, model.revision, loaded.base_dir, offline_catalog=not needs_tokenizer)
    except OutOfReach:
        if find_entry(model.name) is None:
            raise
        return open_model(model.name, model.revision, loaded.base_dir, offline_catalog=True)


def _told_of_guess(name: str) -> str:
    from vlmtune.estimate.guessed_rows import BYTES_PER_TOKEN

    return (
        f"the hub cannot be reached and the tokenizer of {name} is not in the cache: text tokens are guessed, one for "
        f"{BYTES_PER_TOKEN} bytes; image tokens are counted, with the catalogue's files"
    )
