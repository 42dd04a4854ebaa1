"""What is no longer so of a name that vlmtune borrows from a library: it is gone, unused, or takes other arguments."""

import dis
import inspect
import re
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType

import torch

from vlmtune.compat.borrowed import Attribute, Name, Override, resolve

READS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
IN_ORDER = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
TAKEN_AWAY: set[str] = set()
"""Names that are looked for in vain in code and among arguments: how a test takes one away."""


def problems(borrowed: Name | Attribute | Override) -> list[str]:
    """Return what is no longer as declared; each line begins with the name and ends with why it is needed."""
    find = {Name: _of_name, Attribute: _of_attribute, Override: _of_override}[type(borrowed)]
    return [f"{borrowed.path} {problem}: {borrowed.why}" for problem in find(borrowed)]


def _of_name(name: Name) -> Iterator[str]:
    try:
        found = name.get()
    except ImportError as error:
        yield f"is gone ({error})"
        return
    if name.takes:
        yield from _refusals(_left(_parameters(found)), name.takes)
    owner, _, last = name.path.rpartition(".")
    if name.read_by and last not in _read_by(name.read_by, patched=resolve(owner)):
        yield f"is no longer looked up by {name.read_by}"


def _of_attribute(attribute: Attribute) -> Iterator[str]:
    holder = resolve(attribute.of)
    names = {attribute.name, attribute.older} - {""} - TAKEN_AWAY
    known = set(getattr(holder, "__annotations__", ())).union(*(code.known for code in _code_of(attribute.of)))
    if not any(name in known or hasattr(holder, name) for name in names):
        yield "is gone"
    elif attribute.read_by and not names & _read_by(attribute.read_by):
        yield f"is no longer read by {attribute.read_by}"


def _of_override(override: Override) -> Iterator[str]:
    owner, _, name = override.path.rpartition(".")
    base, reader = resolve(owner), override.read_by or owner
    if name in TAKEN_AWAY or not hasattr(base, name):
        yield "is gone"
        return
    if name not in _read_by(reader, but=name):
        yield f"is no longer asked for by {reader}"
    for path in override.by:
        own = vars(resolve(path)).get(name)
        if own is None:
            yield f"is not replaced by {path}"
        elif isinstance(own, FunctionType):
            yield from _differences(_left(_parameters(getattr(base, name))), _parameters(own))


def _refusals(parameters: dict[str, inspect.Parameter], takes: str) -> Iterator[str]:
    """Yield what stands against a call with the declared arguments."""
    in_order, by_name = (re.findall(r"\w+", part) for part in (takes + "*").split("*")[:2])
    there = [name for name, parameter in parameters.items() if parameter.kind in IN_ORDER]
    if there[: len(in_order)] != in_order:
        yield f"takes ({', '.join(there)}), not ({', '.join(in_order)})"
    yield from (f"takes no {name}" for name in by_name if name not in parameters)
    if "..." not in takes:
        given = {*in_order, *by_name}
        yield from (f"needs {name}" for name in _named(parameters, required=True) if name not in given)


def _differences(theirs: dict[str, inspect.Parameter], ours: dict[str, inspect.Parameter]) -> Iterator[str]:
    """Yield the arguments that the library's method or ours does not take."""
    yield from (f"takes no {name}" for name in _named(ours) if name not in theirs)
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in ours.values()):
        yield from (f"is given {name}" for name in _named(theirs) if name not in ours)


def _named(parameters: dict[str, inspect.Parameter], *, required: bool = False) -> list[str]:
    return [
        name
        for name, parameter in parameters.items()
        if parameter.kind not in ANY and not (required and parameter.default is not parameter.empty)
    ]


def _parameters(found: object) -> dict[str, inspect.Parameter]:
    """Return the arguments of a function, a class or an operation of torch; `self` of a method is none."""
    if isinstance(found, torch._ops.OpOverloadPacket):
        parameters = map(_of_operation, found.default._schema.arguments)
    else:
        parameters = inspect.signature(found).parameters.values()
        is_method = isinstance(found, FunctionType) and "." in found.__qualname__
        parameters = (one for one in parameters if not (is_method and one.name == "self"))
    return {one.name: one for one in parameters}


def _left(parameters: dict[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in parameters.items() if name not in TAKEN_AWAY}


def _of_operation(argument) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    return inspect.Parameter(argument.name, kind, default=default)


class Code:
    """The names in the code of one function."""

    def __init__(self, function: FunctionType) -> None:
        self.name = function.__name__
        self.globals = function.__globals__
        steps = [step for code in _nested(function.__code__) for step in dis.get_instructions(code)]
        texts = {step.argval for step in steps if isinstance(step.argval, str) and step.opname == "LOAD_CONST"}
        self.reads = texts | {step.argval for step in steps if step.opname in READS}
        self.known = self.reads | {step.argval for step in steps if step.opname == "STORE_ATTR"}
        self.global_reads = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}


def _read_by(path: str, *, patched: object = None, but: str = "") -> set[str]:
    """Return what the code behind a path looks up when it runs: attributes, and globals of the module `patched`.

    The function of the name `but` is left out.
    """
    found: set[str] = set()
    for code in _code_of(path):
        if code.name != but:
            found |= code.reads
            if isinstance(patched, ModuleType) and code.globals is vars(patched):
                found |= code.global_reads
    return found - TAKEN_AWAY


@cache
def _code_of(path: str) -> list[Code]:
    return [Code(function) for function in _functions(resolve(path))]


def _functions(found: object) -> Iterator[FunctionType]:
    """Yield a function, or those of a class and the classes of its library that it stands on, or of a module."""
    if isinstance(found, ModuleType):
        own = [value for value in vars(found).values() if getattr(value, "__module__", "") == found.__name__]
        yield from (function for value in own for function in _functions(value))
    elif isinstance(found, type):
        package = found.__module__.partition(".")[0]
        kinds = [kind for kind in found.__mro__ if kind.__module__.partition(".")[0] == package]
        values = [value for kind in kinds for value in vars(kind).values() if not isinstance(value, type)]
        yield from (function for value in values for function in _functions(value))
    elif isinstance(found, property):
        yield from (function for part in (found.fget, found.fset) for function in _functions(part))
    elif isinstance(function := inspect.unwrap(getattr(found, "__func__", found)), FunctionType):
        yield function


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
