"""The Python of README.md and docs/*.md runs; the commands that they show exist, with their flags."""

import ast
import contextlib
import inspect
import io
import re

import pytest

import craft
from craft.cli import main
from craft.core.settings import leaves, resolve_name
from craft.evaluation.config import EvalConfig, TransferConfig
from craft.training.config import AdaptConfig, AlignConfig, BaselineConfig
from docs.reading import ROOT, commands, python_blocks

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
CODED = [page for page, text in TEXTS.items() if python_blocks(text)]
DATA_VERBS = "list|check|stats|prepare|captions|statements|options"
VERB = re.compile(rf"(?:^|`)craft ([a-z]+(?: (?:{DATA_VERBS}))?)\b", re.MULTILINE)
VERBS = sorted({verb for text in TEXTS.values() for verb in VERB.findall(text)})
COMMANDS = sorted({line for text in TEXTS.values() for line in commands(text)})


@pytest.mark.parametrize("page", CODED)
def test_python_runs(page, quick_runs, continuous_twin, capsys):
    """All blocks of a page in one namespace, as a reader would type them."""
    namespace: dict[str, object] = {}
    for code, reason in python_blocks(TEXTS[page]):
        if not reason:
            exec(compile(code, page, "exec"), namespace)
    if page == "README.md":
        assert len(capsys.readouterr().out.strip().splitlines()) >= 2


@pytest.mark.parametrize("page", CODED)
def test_python_names_exist(page):
    """In blocks that are not run too: functions of craft, their arguments and settings."""
    for code, _ in python_blocks(TEXTS[page]):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("craft."):
                check_call(node)


def check_call(node: ast.Call) -> None:
    """The function exists, and takes the keywords or they are settings of an adaptation."""
    function = craft
    for part in ast.unparse(node.func).split(".")[1:]:
        if not part.isidentifier():
            return  # a method of a call's result
        function = getattr(function, part)
        if inspect.isfunction(function):
            break
    if not inspect.isfunction(function):
        return
    parameters = inspect.signature(function).parameters
    for keyword in node.keywords:
        if keyword.arg not in parameters:
            assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()), f"{function}: {keyword.arg}"
            kinds = {"evaluate": EvalConfig, "transfer": TransferConfig}
            resolve_name(str(keyword.arg), kinds.get(function.__name__, AdaptConfig))


def help_of(verb: str) -> str:
    """The text of `craft VERB --help`."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*verb.split(), "--help"]) == 0, f"there is no `craft {verb}`"
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("verb", VERBS)
def test_verb_exists(verb):
    assert f"Usage: craft {verb}" in help_of(verb)


def test_the_main_verbs_are_shown():
    shown = {line.split()[1] for line in commands(TEXTS["README.md"])}
    shown |= set(re.findall(r"`craft ([a-z]+)", TEXTS["README.md"]))
    assert {"demo", "adapt", "eval", "transfer", "inspect", "export", "data"} <= shown


@pytest.mark.parametrize("line", COMMANDS)
def test_flags_of_a_command_exist(line):
    words = line.split()[1:]
    verb = " ".join(words[:2]) if words[0] == "data" else words[0]
    kinds = (AdaptConfig, AlignConfig, BaselineConfig, EvalConfig, TransferConfig)
    settings = {leaf for kind in kinds for leaf in leaves(kind)}
    known = help_of(verb)
    for flag in re.findall(r"--([\w.-]+)", line):
        name = flag.replace("-", "_")
        assert f"--{flag}" in known or any(leaf.endswith(name) for leaf in settings), (
            f"craft {verb} has no --{flag}"
        )
