"""The way of a config through `vlmtune train`: who sees it, in which order of rooms, until it is a plan."""

import os
import sys
from pathlib import Path

import vlmtune
from vlmtune.config.load import LoadedConfig
from vlmtune.config.schema import Section
from vlmtune.config.sections import SourceSection

PACKAGE = f"{Path(vlmtune.__file__).parent}{os.sep}"
MOST_ROOMS = 10
ORDER = ("cli", "workflow", "plan", "levers", "config")
"""From the outermost; a call from one of them into one before it would be coming back."""


class Walk:
    """Calls between functions of the package that are handed a config, with the rooms of caller and called."""

    def __init__(self) -> None:
        self.rooms: list[str] = []
        self.modules: list[str] = []
        self.calls: set[tuple[str, str]] = set()

    def profile(self, frame, event, arg) -> None:
        if event != "call" or (module := module_of(frame)) is None:
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if not any(is_config(frame.f_locals.get(name)) for name in names):
            return
        caller = frame.f_back
        while caller is not None and module_of(caller) is None:
            caller = caller.f_back
        room = module.split("/")[0]
        self.rooms.append(room)
        self.modules.append(module)
        if caller is not None:
            self.calls.add((module_of(caller).split("/")[0], room))


def is_config(value) -> bool:
    """Whether something is a config or a part of one; a source of rows is the value of a key, as its path is."""
    return isinstance(value, LoadedConfig | Section) and not isinstance(value, SourceSection)


def module_of(frame) -> str | None:
    """`plan/decide` of a function of the package; every call of the process asks, so it is plain text work."""
    file = frame.f_code.co_filename
    return file[len(PACKAGE) : -len(".py")].replace(os.sep, "/") if file.startswith(PACKAGE) else None


def test_a_config_goes_from_room_to_room_and_never_back(project):
    walk = Walk()
    sys.setprofile(walk.profile)
    try:
        done = project.train("walk", "training.max_steps=1")
    finally:
        sys.setprofile(None)
    assert done.code == 0, done.stderr
    rooms = set(walk.rooms)
    assert rooms == {"workflow", "plan", "levers", "config"}, "no other room sees a config: they have the plan"
    assert len(rooms | {"cli"}) <= MOST_ROOMS
    outside_levers = {module for module in walk.modules if not module.startswith("levers/")}
    assert len(outside_levers) <= MOST_ROOMS, outside_levers
    back = {(caller, room) for caller, room in walk.calls if ORDER.index(room) < ORDER.index(caller)}
    assert back == set()
    assert len(walk.calls) >= 5, "the walk was seen"
