"""A canary for each name that vlmtune borrows from a library: it fails with the name when a new version moves it."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import canaries
import pytest
import torch
import transformers
from transformers import core_model_loading, trainer_pt_utils

from vlmtune import compat
from vlmtune.compat import borrowed as looking
from vlmtune.compat import libraries
from vlmtune.compat import transformers as of_transformers
from vlmtune.compat.borrowed import Attribute, Library, Name, Override
from vlmtune.compat.modeling import SUPPORTS_SDPA
from vlmtune.compat.trainer import GET_LENGTH_GROUPED_INDICES, TRAIN_SAMPLER

ROOT = Path(__file__).parents[2]
MODULES = [importlib.import_module(f"vlmtune.compat.{found.name}") for found in pkgutil.iter_modules(compat.__path__)]
KINDS = (Name, Attribute, Override)
DECLARED = {one.path: one for module in MODULES for one in vars(module).values() if isinstance(one, KINDS)}
HERE = [one for one in DECLARED.values() if not getattr(one, "cuda_only", False) or torch.backends.cuda.is_built()]
"""Without those that a torch for CPUs alone lacks."""


def last(path: str) -> str:
    return path.rpartition(".")[2]


def path_of(declared) -> str:
    return declared.path


def arguments() -> list:
    """Every argument that a declaration says something of, or that a method of vlmtune takes in a library's place."""
    given = [(one, name) for one in HERE if isinstance(one, Name) for name in re.findall(r"\w+", one.takes)]
    for one in HERE:
        if isinstance(one, Override):
            owns = [vars(looking.resolve(by))[last(one.path)] for by in one.by]
            parameters = [inspect.signature(own).parameters for own in owns if inspect.isfunction(own)]
            given += [
                (one, name)
                for found in parameters
                for name, parameter in found.items()
                if name != "self" and parameter.kind not in canaries.ANY
            ]
    return [pytest.param(one, name, id=f"{one.path}-{name}") for one, name in given]


@pytest.mark.parametrize("declared", HERE, ids=path_of)
def test_the_library_still_has_it_and_uses_it_so(declared):
    assert canaries.problems(declared) == []


def test_many_are_declared_and_all_say_why():
    assert len(DECLARED) > 80
    assert sum(isinstance(one, Override) for one in DECLARED.values()) > 15
    assert all(re.fullmatch(r"\S.{10,}\.", one.why) for one in DECLARED.values())


@pytest.fixture
def take_away(monkeypatch):
    """A function after which a name is found nowhere: no attribute, module or argument has it, no code reads it."""

    def without(*names: str) -> None:
        def look(holder, name, *default):
            if name not in names:
                return getattr(holder, name, *default)
            if default:
                return default[0]
            raise AttributeError(name)

        def load(path):
            if last(path) in names:
                raise ModuleNotFoundError(name=path)
            return importlib.import_module(path)

        monkeypatch.setattr(looking, "getattr", look, raising=False)
        monkeypatch.setattr(looking, "import_module", load)
        monkeypatch.setattr(canaries, "TAKEN_AWAY", set(names))

    return without


@pytest.mark.parametrize("declared", HERE, ids=path_of)
def test_the_canary_dies_with_the_name(declared, take_away):
    take_away(last(declared.path), *filter(None, [getattr(declared, "older", "")]))
    found = canaries.problems(declared)
    assert found and all(problem.startswith(f"{declared.path} ") for problem in found)
    assert "is gone" in found[0] and declared.why in found[0]


@pytest.mark.parametrize(("declared", "argument"), arguments())
def test_the_canary_dies_with_an_argument(declared, argument, monkeypatch):
    monkeypatch.setattr(canaries, "TAKEN_AWAY", {argument})
    found = canaries.problems(declared)
    assert found and all(problem.startswith(f"{declared.path} takes ") for problem in found)
    assert argument in found[0]


@pytest.mark.parametrize("declared", [one for one in HERE if getattr(one, "read_by", "")], ids=path_of)
def test_the_canary_dies_when_nobody_reads_the_name(declared, monkeypatch):
    real = canaries._code_of

    def blind(path):
        return [] if path == declared.read_by else real(path)

    monkeypatch.setattr(canaries, "_code_of", blind)
    assert len(canaries.problems(declared)) == 1
    assert re.search(r"is no longer (looked up|read|asked for) by", canaries.problems(declared)[0])


def test_a_function_taken_from_the_library_itself(monkeypatch):
    monkeypatch.delattr(trainer_pt_utils, "get_length_grouped_indices")
    (problem,) = canaries.problems(GET_LENGTH_GROUPED_INDICES)
    assert problem.startswith("transformers.trainer_pt_utils.get_length_grouped_indices is gone")
    with pytest.raises(ImportError, match=r"^transformers \S+ has no transformers.trainer_pt_utils.get_length_grouped"):
        GET_LENGTH_GROUPED_INDICES.get()


def test_a_method_taken_from_the_library_itself(monkeypatch):
    monkeypatch.delattr(transformers.Trainer, "_get_train_sampler")
    (problem,) = canaries.problems(TRAIN_SAMPLER)
    assert problem.startswith("transformers.Trainer._get_train_sampler is gone")


def test_a_value_taken_from_the_library_itself(monkeypatch):
    monkeypatch.delattr(transformers.PreTrainedModel, "_supports_sdpa")
    assert canaries.problems(SUPPORTS_SDPA)[0].startswith("transformers.PreTrainedModel._supports_sdpa is gone")


def test_an_argument_taken_from_the_library_itself(monkeypatch):
    monkeypatch.setattr(core_model_loading, "rename_source_key", lambda source_key, weight_renamings, new: None)
    assert [problem.partition(":")[0] for problem in canaries.problems(of_transformers.RENAME_SOURCE_KEY)] == [
        "transformers.core_model_loading.rename_source_key takes (source_key, weight_renamings, new), "
        "not (source_key, weight_renamings, weight_converters, base_model_prefix, meta_state_dict)",
        "transformers.core_model_loading.rename_source_key needs new",
    ]


def test_an_argument_that_the_library_adds_to_a_method(monkeypatch):
    def sampler(self, train_dataset=None, epoch=0): ...

    monkeypatch.setattr(transformers.Trainer, "_get_train_sampler", sampler)
    (problem,) = canaries.problems(TRAIN_SAMPLER)
    assert problem.startswith("transformers.Trainer._get_train_sampler is given epoch")


def test_a_module_that_lacks_another_library_is_not_said_to_be_gone(monkeypatch, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "broken.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        looking.resolve("whole.broken")
    with pytest.raises(LookupError, match="whole.absent"):
        looking.resolve("whole.absent")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_the_versions_are_those_of_the_constraints(file):
    pinned = dict(re.findall(r"^(\w+)==(\S+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))
    checked = [one for one in vars(libraries).values() if isinstance(one, Library)]
    assert len(checked) >= 5
    field = "oldest" if "oldest" in file else "newest"
    found = {one.name: getattr(one, field) for one in checked if one.name in pinned}
    assert found == {name: pinned[name] for name in found} and len(found) >= 4
