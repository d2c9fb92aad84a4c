"""docs/paper_map.md and docs/architecture.md name code that exists."""

import ast
import dataclasses
import re
from importlib import import_module

import pytest

from docs.reading import ROOT, symbols

PAGES = ("docs/paper_map.md", "docs/architecture.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
SYMBOLS = sorted({symbol for text in TEXTS.values() for symbol in symbols(text)})
ARCHITECTURE = TEXTS["docs/architecture.md"]


def resolve(module: str, name: str) -> bool:
    """Whether a module of craft has the dotted name (a dataclass's field counts)."""
    value: object = import_module(module)
    for part in name.split("."):
        if dataclasses.is_dataclass(value) and part in {f.name for f in dataclasses.fields(value)}:
            return True
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("file, name", SYMBOLS, ids=lambda part: part)
def test_symbol_exists(file, name):
    outside = (ROOT / file).is_file()
    path = ROOT / file if outside else ROOT / "src/craft" / file
    assert path.is_file(), f"the documentation names {file}, which does not exist"
    if not name:
        return
    if outside:  # scripts are read, not run
        tops = {getattr(node, "name", None) for node in ast.parse(path.read_text(encoding="utf-8")).body}
        tops |= {
            target.id
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        assert name in tops
    else:
        module = "craft." + file.removesuffix(".py").replace("/", ".")
        assert resolve(module, name), f"{module} has no {name}"


def folders(heading: str, until: str) -> set[str]:
    """The folders that a table of architecture.md lists."""
    table = ARCHITECTURE.partition(heading)[2].partition(until)[0]
    return set(re.findall(r"^\| `([\w]+)` \|", table, re.MULTILINE))


def test_every_folder_of_the_package_is_listed():
    package = {path.name for path in (ROOT / "src/craft").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders("## The folders", "Next to the package") == package


def test_every_folder_beside_the_package_is_listed():
    listed = folders("Next to the package", "## From")
    assert all((ROOT / name).is_dir() for name in listed)
    ignored = {"src", "shared", "build", "dist", "runs", "prepared"}
    beside = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"} - ignored
    assert listed == beside


def test_the_call_passes_five_files():
    steps = ARCHITECTURE.partition("to Eq. 2")[2].partition("##")[0]
    files = re.findall(r"^\d\. `([\w/]+\.py):\w+`", steps, re.MULTILINE)
    assert len(files) == 5 and files[0] == "cli/adapt.py" and files[-1].startswith("losses/")
