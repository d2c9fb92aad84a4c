"""README.md: its Python runs, its commands exist, its tree is the tree."""

import ast
import functools
import importlib
import inspect
import re

import pytest

import craft
from builders import tiny_lvlm
from craft.cli import main
from craft.core.settings import resolve_name
from craft.formats import names
from craft.formats.native import save_native
from craft.training.config import AdaptConfig
from docs.reading import ROOT, blocks, tree

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = blocks(TEXT, "python")
VERBS = sorted(set(re.findall(r"(?:^|`)craft ([a-z]+(?: list| check)?)\b", TEXT, re.MULTILINE)))


@pytest.fixture
def tiny_family(tmp_path, monkeypatch):
    """Random models under the names of the shipped ones, a few samples of each data set, two steps."""
    for kind in ("llama", "qwen2"):
        save_native(tmp_path / "models/craft-tiny", kind, tiny_lvlm(kind), dtype="float32")
    monkeypatch.setattr(names, "_SHIPPED", tmp_path / "models")
    from craft.recipes import questions

    monkeypatch.setattr(questions, "load_data", limited(questions.load_data))
    recipe = importlib.import_module("craft.recipes.adapt")
    monkeypatch.setattr(recipe, "run_settings", shortened(recipe.run_settings))
    monkeypatch.chdir(tmp_path)


def limited(load_data):
    """`load_data` with few samples per split."""

    @functools.wraps(load_data)
    def few(*args, **kwargs):
        return load_data(*args, **{**kwargs, "limit": 12})

    return few


def shortened(run_settings):
    """`run_settings` for a run of two small steps."""

    def short(*args):
        return run_settings(*args).model_copy(update={"max_steps": 2, "batch_size": 4})

    return short


def test_python_names_exist():
    assert len(CODE) == 1
    calls = 0
    for node in ast.walk(ast.parse(CODE[0])):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("craft."):
            continue
        function = craft
        for part in ast.unparse(node.func).split(".")[1:]:
            if not part.isidentifier():
                break
            function = getattr(function, part)
            if inspect.isfunction(function):
                break
        if not inspect.isfunction(function):
            continue
        calls += 1
        known = inspect.signature(function).parameters
        for keyword in node.keywords:
            if keyword.arg in known:
                continue
            assert any(p.kind is p.VAR_KEYWORD for p in known.values()), f"{function}: {keyword.arg}"
            resolve_name(str(keyword.arg), AdaptConfig)
    assert calls >= 5


def test_python_is_twelve_lines():
    lines = [line for line in CODE[0].splitlines() if line.strip()]
    assert len(lines) == 12


def test_python_runs(tiny_family, capsys):
    exec(compile(CODE[0], "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) >= 2


@pytest.mark.parametrize("verb", VERBS)
def test_verb_exists(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    assert f"Usage: craft {verb}" in " ".join(capsys.readouterr().out.split())


def test_the_verbs_that_are_promised_are_shown():
    promised = {"demo", "adapt", "eval", "transfer", "inspect", "export", "data list"}
    assert promised <= set(VERBS), f"README.md shows {VERBS}"


def test_tree_is_the_tree():
    named = tree(TEXT)
    missing = [str(path) for path in named if not (ROOT / path).exists()]
    assert missing == [], f"README.md names what does not exist: {missing}"
    packages = {path.parent.name for path in (ROOT / "src/craft").glob("*/__init__.py")}
    told = {path.name for path in named if path.parent.as_posix() == "src/craft"}
    assert packages <= told, f"README.md's tree lacks {sorted(packages - told)}"


def test_marks_for_measured_parts_are_in_pairs():
    begun = re.findall(r"<!-- ([\w:]+):begin -->", TEXT)
    ended = re.findall(r"<!-- ([\w:]+):end -->", TEXT)
    assert begun == ended and "numbers" in begun
