"""No private or undocumented name of a library is used outside of vlmtune/compat, where each has its canary."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import canaries
import pytest
from private_names import DECLARATIONS, DECLARED, LIBRARIES, defined_in, scan

import vlmtune
from vlmtune.compat.borrowed import Override, resolve

PACKAGE = Path(vlmtune.__file__).parent
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "compat" not in file.parents]
DOCUMENTED_HOOKS = {
    "torch.nn.Module": {"forward"},
    "torch.autograd.Function": {"forward", "backward"},
    "torch.optim.lr_scheduler.LambdaLR": {"state_dict", "load_state_dict"},
    "transformers.TrainerCallback": {
        f"on_{event}"
        for event in ("train_begin", "train_end", "step_end", "evaluate", "log", "save", "pre_optimizer_step")
    },
    "transformers.PreTrainedConfig": {
        *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("max_position_embeddings", "use_cache", "tie_word_embeddings", "keys_to_ignore_at_inference"),
    },
    "transformers.PreTrainedModel": {
        *("config_class", "base_model_prefix", "get_input_embeddings", "set_input_embeddings"),
        *("prepare_inputs_for_generation", "input_modalities"),
    },
    "rich.console.Console": {"on_broken_pipe", "render"},
    "rich.markdown.Markdown": {"elements"},
    "transformers.BaseImageProcessor": {"model_input_names", "size", "image_mean", "image_std"},
    "transformers.ProcessorMixin": {"from_pretrained"},
    "transformers.TextStreamer": {"put", "on_finalized_text"},
}
"""What their documentation tells to write anew in a class of one's own, by the class that it is written for."""


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_private_names_are_used_in_compat_only(file):
    assert scan(file.read_text(encoding="utf-8")) == []


def classes() -> list[type]:
    """The classes of vlmtune that stand on one of a library."""
    found = []
    for file in FILES:
        if re.search(r"^class \w+\(", file.read_text(encoding="utf-8"), re.MULTILINE):
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
            own = [
                kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__
            ]
            found += [kind for kind in own if library_bases(kind)]
    return found


def library_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] in LIBRARIES - {"pydantic"}]


def undeclared_overrides(kind: type) -> Iterator[str]:
    """Yield what a class takes the place of in its library's classes without a declaration or a documentation."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    declared = {one.path.rpartition(".")[2] for one in DECLARED if isinstance(one, Override) and path in one.by}
    bases = library_bases(kind)
    documented = set().union(*(names for base, names in DOCUMENTED_HOOKS.items() if stands_on(kind, base)))
    (source,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for name in sorted(defined_in(source) - declared - documented):
        if not name.startswith("__") and any(has(base, name) for base in bases):
            yield name


def stands_on(kind: type, path: str) -> bool:
    return any(base is resolve(path) for base in kind.__mro__)


def has(base: type, name: str) -> bool:
    return name in vars(base) or any(
        name in code.known for code in canaries._code_of(f"{base.__module__}.{base.__qualname__}")
    )


def test_what_takes_the_place_of_a_library_s_name_is_declared_or_documented():
    kinds = classes()
    assert len(kinds) >= 20
    found = {f"{kind.__module__}.{kind.__qualname__}": list(undeclared_overrides(kind)) for kind in kinds}
    assert {kind: names for kind, names in found.items() if names} == {}


def unused(text: str) -> list[str]:
    """The declarations of names and attributes that the text of the package, compat included, does not use."""
    attributes = set(re.findall(r"(?<=[\w)\]])\.(\w+)\b(?!\")", text))
    constants = set(re.findall(r"\b(\w+)\b(?! = )", text))

    def is_used(constant: str, one) -> bool:
        return one.path.rpartition(".")[2] in attributes if one.plain else constant in constants

    kinds = {constant: one for constant, one in DECLARATIONS.items() if not isinstance(one, Override)}
    return [constant for constant, one in kinds.items() if not is_used(constant, one)]


def test_every_declaration_is_used():
    text = "\n".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    assert unused(text) == []
    assert unused(text.replace(".overloadpacket", "").replace("OVERLOAD_PACKET.read", "")) == ["OVERLOAD_PACKET"]
    assert unused(text.replace(".is_paged", "")) == ["IS_PAGED"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("class A(B):\n    def f(self):\n        super()._theirs()", "super()._theirs is private"),
        ("from torch._prims_common import is_contiguous", "torch._prims_common.is_contiguous is private"),
        ("import torch\ntorch._C._current_graph_task_id()", "torch._C._current_graph_task_id is private"),
        ("import torch\naten = torch.ops.aten\naten._to_copy.default", "aten._to_copy is private"),
        ("import torch\ntorch.ops.bitsandbytes.gemm_4bit", "torch.ops.bitsandbytes.gemm_4bit is declared in compat"),
        ("from transformers.trainer_pt_utils import anything", "transformers.trainer_pt_utils is undocumented"),
        ("from transformers import initialization", "transformers.initialization is declared in compat"),
        ("from transformers.utils import cached_file", "transformers.utils.cached_file is undocumented"),
        ("from transformers.utils import hub", "transformers.utils.hub is undocumented"),
        ("from huggingface_hub.utils import tqdm", "huggingface_hub.utils.tqdm is undocumented"),
        ("from bitsandbytes.nn import Params4bit", "bitsandbytes.nn.Params4bit is declared in compat"),
        (
            "def f():\n    import bitsandbytes\n    bitsandbytes.cextension.lib",
            "bitsandbytes.cextension.lib is declared",
        ),
        ("def f(tensor):\n    return tensor.untyped_storage()._cdata", "tensor.untyped_storage()._cdata is private"),
        ("class A(B):\n    def f(self):\n        return self._theirs", "self._theirs is private"),
        ("def f(weight):\n    return weight.quant_state", "quant_state is declared in compat"),
        ("def f(weight):\n    return getattr(weight, 'quant_state', None)", "'quant_state' is private, or declared"),
        ("def f(model):\n    return hasattr(model, '_tied')", "'_tied' is private, or declared in compat"),
        ("def f(model):\n    model.is_loaded_in_4bit = True", "is_loaded_in_4bit is declared in compat"),
        ("f(_retries=3)", "_retries= is private"),
        ("import torch.nn.functional as F\nF.linear = None", "torch.nn.functional.linear is changed"),
        ("from transformers import Trainer\npatch.object(Trainer, 'log', None)", "transformers.Trainer is changed"),
        ("RULES = {'aten._to_copy.default': 1}", "'aten._to_copy.default' names what is private"),
        ("RULES = {'bitsandbytes.gemm_4bit.default': 1}", "'bitsandbytes.gemm_4bit.default' names what is private"),
    ],
)
def test_the_check_can_fail(source, problem):
    (found,) = scan(source)
    assert found.partition(": ")[2].startswith(problem)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "class A:\n    def f(self):\n        self._own = self._g()\n\n    def _g(self): ...",
        "class A(B):\n    def _save(self):\n        super()._save()",
        "import torch\nfrom torch import nn\ntorch.ops.aten.mm.default, nn.Linear, torch.cuda.memory_reserved()",
        "import torch.nn.functional as F\nF.scaled_dot_product_attention(1, 2, 3)",
        "from transformers.utils import logging\nlogging.disable_progress_bar()",
        "def f(plan):\n    return plan.gradient_checkpointing",
        'def f():\n    """torch._C and aten._to_copy.default may be spoken of."""',
    ],
)
def test_the_check_can_pass(source):
    assert scan(source) == []


def test_the_check_of_overrides_can_fail():
    from transformers import Trainer

    class Tuned(Trainer):
        def _save(self, output_dir=None, state_dict=None): ...

        def training_step(self, model, inputs): ...

        def _own(self):
            self._trial = self._other = None

    assert list(undeclared_overrides(Tuned)) == ["_save", "_trial", "training_step"]
