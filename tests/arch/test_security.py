"""SECURITY.md promises what tests hold, and no call of a library is left to decide about code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [file for file in sorted((ROOT / "vlmtune").rglob("*.py")) if "demo" not in file.parts]
LOADERS = ("from_pretrained", "from_config")
TABLE = re.compile(r"^<!-- promises: start -->$(.*)^<!-- promises: end -->$", flags=re.MULTILINE | re.DOTALL)


def promises() -> dict[str, list[str]]:
    """Promise → the tests that hold it."""
    rows = TABLE.search((ROOT / "SECURITY.md").read_text(encoding="utf-8"))[1].strip().splitlines()[2:]
    cells = (row.strip("|").split("|") for row in rows)
    return {promise.strip(): re.findall(r"`(tests/[^`]+)`", tests) for promise, tests in cells}


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    file = ROOT / path
    return file.is_file() and (not name or f"\ndef {name}(" in file.read_text(encoding="utf-8"))


def test_every_promise_names_tests_that_are_there():
    assert len(promises()) >= 9 and all(promises().values())
    assert [test for tests in promises().values() for test in tests if not exists(test)] == []


@pytest.mark.parametrize("test", ["tests/arch/test_none.py", "tests/arch/test_security.py::test_nothing"])
def test_a_test_that_is_gone_would_be_seen(test):
    assert not exists(test)


def calls(file: Path, names: tuple[str, ...]):
    """The calls of attributes with these names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def says(call: ast.Call, keyword: str, value: bool) -> bool:
    return any(one.arg == keyword and getattr(one.value, "value", None) is value for one in call.keywords)


def test_no_library_is_let_run_code_of_a_model():
    """Unless told not to, transformers asks on the terminal whether to run it."""
    loading = [(file, call) for file in FILES for call in calls(file, LOADERS) if "PeftModel" not in ast.unparse(call)]
    passed_on = [call for _, call in loading if any(one.arg is None for one in call.keywords)]
    open_to_code = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file, call in loading
        if not says(call, "trust_remote_code", False) and "super()" not in ast.unparse(call)
    ]
    assert len(loading) >= 6 and len(passed_on) <= 2 and open_to_code == []


def test_torch_unpickles_tensors_alone():
    loading = [call for file in FILES for call in calls(file, ("load",)) if ast.unparse(call.func) == "torch.load"]
    assert loading and all(says(call, "weights_only", True) for call in loading)
    imports = re.compile(r"^\s*(import|from) (pickle|dill|joblib|marshal|shelve)\b", flags=re.MULTILINE)
    importing = [file.name for file in FILES if imports.search(file.read_text(encoding="utf-8"))]
    assert importing == ["to_safetensors.py"]  # for the error that torch raises
