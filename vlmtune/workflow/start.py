"""What a command does before it computes on the GPU."""

from vlmtune.printing import say


def start_on_gpu() -> tuple[str, ...]:
    """Prepare this process for torch on one GPU; say and return what the environment asked for otherwise.

    To be called before torch is imported.

    Raises:
        VlmtuneError: a launcher has started several processes.
    """
    from vlmtune.engine.ranks.single import stay_single
    from vlmtune.engine.runtime import prepare_environment

    prepare_environment()
    notes = stay_single()
    for note in notes:
        say(note, err=True)
    return notes
