"""Finds private and undocumented names of libraries in source text, but for what vlmtune/compat declares."""

import ast
import importlib
import importlib.util
import pkgutil
import re
from functools import cache

from vlmtune import compat
from vlmtune.compat.borrowed import Attribute, Name, Override

MODULES = [importlib.import_module(f"vlmtune.compat.{found.name}") for found in pkgutil.iter_modules(compat.__path__)]
DECLARATIONS = {
    constant: one
    for module in MODULES
    for constant, one in vars(module).items()
    if isinstance(one, Name | Attribute | Override)
}
DECLARED = DECLARATIONS.values()

EVERYTHING = None
PUBLIC: dict[str, set[str] | None] = {
    "accelerate": EVERYTHING,
    "bitsandbytes": EVERYTHING,
    "bitsandbytes.functional": EVERYTHING,
    "bitsandbytes.nn": EVERYTHING,
    "bitsandbytes.optim": EVERYTHING,
    "click": EVERYTHING,
    "datasets": EVERYTHING,
    "datasets.exceptions": EVERYTHING,
    "datasets.utils.logging": EVERYTHING,
    "huggingface_hub": EVERYTHING,
    "huggingface_hub.constants": EVERYTHING,
    "huggingface_hub.errors": EVERYTHING,
    "huggingface_hub.hf_api": {"RepoFile"},
    "huggingface_hub.utils": {"build_hf_headers", "disable_progress_bars"},
    "peft": EVERYTHING,
    "pydantic": EVERYTHING,
    "rich": EVERYTHING,
    **{f"rich.{name}": EVERYTHING for name in ("box", "console", "live", "markdown", "panel", "progress")},
    **{f"rich.{name}": EVERYTHING for name in ("progress_bar", "segment", "syntax", "table", "text")},
    "safetensors": EVERYTHING,
    "safetensors.torch": EVERYTHING,
    "timm": EVERYTHING,
    "tokenizers": EVERYTHING,
    **{
        f"tokenizers.{name}": EVERYTHING for name in ("decoders", "models", "normalizers", "pre_tokenizers", "trainers")
    },
    "torch": EVERYTHING,
    "torch.autograd": EVERYTHING,
    "torch.cuda": EVERYTHING,
    "torch.nn": EVERYTHING,
    "torch.nn.functional": EVERYTHING,
    "torch.nn.utils": EVERYTHING,
    "torch.ops": EVERYTHING,
    "torch.random": EVERYTHING,
    "torch.optim": EVERYTHING,
    "torch.testing": EVERYTHING,
    "torch.distributed": EVERYTHING,
    "torch.optim.lr_scheduler": EVERYTHING,
    "torch.utils.checkpoint": EVERYTHING,
    "torch.utils.data": EVERYTHING,
    "torch.utils.tensorboard": EVERYTHING,
    "torch.version": EVERYTHING,
    "torchvision": EVERYTHING,
    "torchvision.transforms": EVERYTHING,
    "torchvision.transforms.v2": EVERYTHING,
    "transformers": EVERYTHING,
    "transformers.integrations": {"TensorBoardCallback"},
    "transformers.modeling_outputs": EVERYTHING,
    "transformers.utils": {"logging"},
    "transformers.utils.logging": EVERYTHING,
    "typer": EVERYTHING,
}
"""The modules that the libraries document, and what of them."""
LIBRARIES = {module.partition(".")[0] for module in PUBLIC}
PRIVATE = re.compile(r"_[A-Za-z]\w*")
BY_NAME = ("getattr", "hasattr", "setattr", "delattr", "object", "methodcaller", "attrgetter")
"""Functions (`object` is mock's `patch.object`) that take an attribute's name as text."""
PATHS = {one.path for one in DECLARED if not getattr(one, "plain", False)}
ATTRIBUTES = {
    name
    for one in DECLARED
    if isinstance(one, Attribute) and not one.plain
    for name in (one.name, one.older)
    if name and not PRIVATE.fullmatch(name)
}
OPERATIONS = {path.removeprefix("torch.ops.") for path in PATHS if path.startswith("torch.ops.")}


class Scan(ast.NodeVisitor):
    """Finds private and undocumented names in one file."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.imported: dict[str, str] = {}
        """Local name → what it stands for, of everything that is imported."""
        self.own: list[set[str]] = []
        """Names that the classes around define themselves."""

    def note(self, node: ast.AST, text: str) -> None:
        self.found.append(f"{node.lineno}: {text}")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first = alias.name.partition(".")[0]
            self.imported[alias.asname or first] = alias.name if alias.asname else first
            self.look_at_path(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            self.look_at_path(node, f"{node.module}.{alias.name}")

    def look_at_path(self, node: ast.AST, path: str) -> None:
        if problem := problem_of(path):
            self.note(node, problem)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.own.append(defined_in(node))
        self.generic_visit(node)
        self.own.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self.path_of(node)
        if is_of_library(path):
            self.look_at_path(node, path)
        elif PRIVATE.fullmatch(node.attr) and not self.is_own(node, path):
            self.note(node, f"{ast.unparse(node)} is private")
        elif node.attr in ATTRIBUTES:
            self.note(node, f"{node.attr} is declared in compat")
        if isinstance(node.ctx, ast.Store | ast.Del) and is_of_library(path):
            self.note(node, f"{path} is changed")
        if path is None:
            self.generic_visit(node)

    def is_own(self, node: ast.Attribute, path: str | None) -> bool:
        """Whether a private name is one of vlmtune's classes, or of a module that is none of the libraries."""
        if path is not None or not self.own:
            return path is not None
        return ast.unparse(node.value) in ("self", "cls", "super()") and node.attr in self.own[-1]

    def path_of(self, node: ast.expr) -> str | None:
        """The dotted path of a name that is imported, or of something in it."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in self.imported:
            return ".".join([self.imported[node.id], *reversed(names)])
        return None

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in BY_NAME:
            for text in (one.value for one in node.args if isinstance(one, ast.Constant)):
                if isinstance(text, str) and (PRIVATE.fullmatch(text) or text in ATTRIBUTES):
                    self.note(node, f"{text!r} is private, or declared in compat")
        if name in ("object", "setattr", "delattr") and node.args and is_of_library(self.path_of(node.args[0])):
            self.note(node, f"{self.path_of(node.args[0])} is changed")
        for keyword in node.keywords:
            if keyword.arg and PRIVATE.fullmatch(keyword.arg):
                self.note(node, f"{keyword.arg}= is private")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring may name what it likes
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        if re.search(r"\w\._[A-Za-z]", node.value) or any(name in node.value for name in OPERATIONS):
            self.note(node, f"{node.value!r} names what is private")


def is_of_library(path: str | None) -> bool:
    return path is not None and path.partition(".")[0] in LIBRARIES


def problem_of(path: str) -> str | None:
    """Why a dotted path is not to be used, None where it may be."""
    parts = path.split(".")
    if not is_of_library(path):
        return None
    if any(PRIVATE.fullmatch(part) for part in parts):
        return f"{path} is private"
    if path in PATHS or any(path.startswith(f"{declared}.") for declared in PATHS):
        return f"{path} is declared in compat"
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if not is_module(module):
            holder = ".".join(parts[: length - 1])
            names = PUBLIC.get(holder, EVERYTHING)
            return f"{module} is undocumented" if names is not EVERYTHING and parts[length - 1] not in names else None
        if module not in PUBLIC and not any(public.startswith(f"{module}.") for public in PUBLIC):
            return f"{module} is undocumented"
    return None


@cache
def is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except (ModuleNotFoundError, ValueError):  # of something that is no package, or that is made without a file
        return path in PUBLIC


def defined_in(node: ast.ClassDef) -> set[str]:
    """The names that a class defines: its methods and values, and the private ones that its methods set on `self`."""
    names = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    values = [part for part in node.body if isinstance(part, ast.Assign | ast.AnnAssign) and part.value]
    names |= {part.id for value in values for part in ast.walk(value) if is_stored(part, ast.Name)}
    on_self = [part for part in ast.walk(node) if is_stored(part, ast.Attribute) and ast.unparse(part.value) == "self"]
    return names | {part.attr for part in on_self if PRIVATE.fullmatch(part.attr)}


def is_stored(node: ast.AST, kind: type) -> bool:
    return isinstance(node, kind) and isinstance(node.ctx, ast.Store)


def scan(source: str) -> list[str]:
    found = Scan()
    found.visit(ast.parse(source))
    return found.found
