"""What README and docs/ name is there: tasks, commands, flags, modules, config keys, files."""

import re
import shlex

import pytest
import typer
from arch.test_cli_surface import SURFACE
from arch.test_docs import PACKAGE, PAGES, ROOT, text_of, without_code

from vlmtune.cli import app
from vlmtune.config.keys import all_keys, section_docs

HELP = ("--help", "-h")
KEY = re.compile(
    r"(?:data|training|hardware|evaluation(?!\.(?:json|html|py)))(?:\.[a-z][a-z0-9_]*)+|model\.(?:name|type|revision)"
)
PATH = re.compile(r"[\w./-]+\.(?:py|yaml|yml|md|json|jsonl|txt|svg|toml)|(?:tests|docs|configs|vlmtune)/[\w./-]+")
OF_USERS = re.compile(
    r"my-run\.yaml|"
    r"(?:config|report|evaluation(?:-base)?|plan|estimate|manifest|retries|running|versions|log|metadata|vlmtune)\.(?:yaml|jsonl?)"
    r"|adapter/README\.md|(?:generation|processor|tokenizer|(?:video_)?preprocessor)_config\.json"
    r"|(?:tokenizer|vocab|added_tokens|special_tokens_map|model\.safetensors\.index)\.json|merges\.txt"
    r"|convert_hf_to_gguf\.py|conversion/\w+\.py|gguf-py/gguf/vocab\.py"
)
"""What users write, what stands in a run folder, or beside pictures or weights, and files of llama.cpp that read it."""


def code_in(text: str) -> list[str]:
    """The lines of the blocks of code, and the inline code."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", without_code(text))
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return lines + [" ".join(one.split()) for one in spans]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def wrong_commands(code: list[str]) -> list[str]:
    """The code that names a task, a command, a flag or a module that there is not."""
    return [one for one in code if _is_wrong(one)]


def _is_wrong(code: str) -> bool:
    if found := re.match(r"make(?: ([a-z][\w-]*))?(?: |$)", code):
        return found[1] not in {None, *make_targets()}
    if found := re.match(r"python -m ([\w.]+)", code):
        path = PACKAGE.parent / found[1].replace(".", "/")
        return not (path.with_suffix(".py").exists() or path.is_dir())
    if found := re.match(r"(?:\$ )?(?:\.venv/bin/)?vlmtune(?: (.*))?$", code):
        return _is_wrong_call(found[1] or "")
    if re.match(r"--?[a-z]", code):
        return code.split()[0] not in {*HELP, *(flag for flags in SURFACE.values() for flag in flags)}
    return False


def _is_wrong_call(words: str) -> bool:
    words = shlex.split(words.partition(" … ")[0], comments=True)
    groups = {name.split()[0] for name in SURFACE if " " in name}
    if not words or words[0].startswith("-") or words[0] == "…":
        return any(word not in (*SURFACE[""], *HELP, "…") for word in words[:1])
    if words[0] in groups and len(words) == 1:
        return False
    command = " ".join(words[:2]) if words[0] in groups else words[0]
    flags = [word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)]
    return command not in SURFACE or any(flag not in (*SURFACE[command], *HELP) for flag in flags)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_that_a_page_names_exist(page):
    assert wrong_commands(code_in(text_of(page))) == []


def test_a_wrong_command_would_be_seen():
    right = ["make", "make gpu", "vlmtune", "vlmtune models", "vlmtune plan --gpu 8gb -o a.yaml", "--resume"]
    right += [".venv/bin/vlmtune train a.yaml --set a=b  # words", "vlmtune --version", "--set a=b"]
    right += ["python -m vlmtune.demo.digits out"]
    wrong = ["make tea", "vlmtune brew", "vlmtune train a.yaml --gpu 8gb", ".venv/bin/vlmtune models find", "--fastest"]
    wrong += ["vlmtune --verbose", "python -m vlmtune.demo.letters"]
    assert wrong_commands(right + wrong) == wrong


def test_commands_that_the_help_names_exist():
    texts = list(help_texts(typer.main.get_command(app)))
    code = [one for text in texts for one in re.findall(r"`([^`]+)`|\[bold\](.+?)\[/bold\]", text)]
    code = [span or bold for span, bold in code]
    assert len(code) >= 20 and wrong_commands(code) == []


def help_texts(command):
    """Yield what the help of a command and of those in it says."""
    yield from (command.help or "", command.epilog or "")
    yield from (getattr(param, "help", None) or "" for param in command.params)
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner)


def known_keys() -> set[str]:
    return {key.name for key in all_keys()} | {".".join(path) for path in section_docs()}


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_that_a_page_names_exist(page):
    named = {found for one in code_in(text_of(page)) for found in re.findall(rf"(?<![\w./-])(?:{KEY.pattern})", one)}
    assert named - known_keys() == set()


def test_pages_name_keys_at_all():
    text = "".join(map(text_of, PAGES))
    assert {"data.max_length", "training.lora.rank", "hardware.on_oom", "model.name"} <= set(KEY.findall(text))
    assert "training.lora.rang" not in known_keys()


def absent_files(page: str, text: str) -> set[str]:
    """The files and folders of the repository that inline code names and that are not there."""
    spans = [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", without_code(text))]
    named = {one for one in spans if PATH.fullmatch(one) and not OF_USERS.fullmatch(one)}
    places = (ROOT, PACKAGE, (ROOT / page).parent)
    return {one for one in named if not any((place / one).exists() for place in places)}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    assert absent_files(page, text_of(page)) == set()


def test_an_absent_file_would_be_seen():
    right = "`engine/step.py` `tests/gpu` `plans.md` `my-run.yaml`"
    text = f"{right} `engine/stop.py` `tests/cpu` `plan.md` `configs/7gb.yaml`"
    assert absent_files("docs/code.md", text) == {"engine/stop.py", "tests/cpu", "plan.md", "configs/7gb.yaml"}


SEVERAL_NAMES = re.compile(r"\b(?:eval|held[- ]out|validation|val) loss\b", re.IGNORECASE)


def test_the_evaluation_loss_has_one_name():
    texts = {page: text_of(page) for page in PAGES} | {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for file in PACKAGE.rglob("*")
        if file.suffix in (".py", ".html") and file.is_file()
    }
    assert len(texts) > 200
    assert [name for name, text in texts.items() if SEVERAL_NAMES.search(text)] == []
    assert all(SEVERAL_NAMES.search(f"the {name} loss is 2") for name in ("eval", "held-out", "validation"))
