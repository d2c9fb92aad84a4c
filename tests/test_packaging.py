"""pyproject.toml declares what the package imports, and nothing else; constraints.txt fits it."""

import ast
import re
import sys
import tomllib

from docs.reading import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"markdown-it-py": "markdown_it", "pillow": "PIL", "pyyaml": "yaml"}
"""Modules whose name is not the package's with underscores."""
BY_TRANSFORMERS = {"sentencepiece", "protobuf"}
"""What only transformers imports, to read VILA-U's tokenizer.model, and does not require."""
BY_TORCH = {"triton"}
"""What comes with builds of torch that can use it."""


def modules(requirements):
    """Top-level modules of the packages that the requirements name."""
    names = {re.split(r"[<>=!\[ ]", requirement)[0].lower() for requirement in requirements}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported():
    """Top-level third-party modules that any file of src/craft imports, also inside functions."""
    names = set()
    for path in (ROOT / "src/craft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"craft"}


def test_what_is_imported_is_declared():
    extras = (requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra)
    assert imported() - modules(PROJECT["dependencies"]) - modules(extras) == BY_TORCH


def test_what_the_core_declares_is_imported():
    assert modules(PROJECT["dependencies"]) - imported() == BY_TRANSFORMERS


def test_every_dependency_has_a_tested_version_within_its_bounds():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = [line.split("==") for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, version in tested}
    extras = PROJECT["optional-dependencies"]
    unpinned = {canonicalize_name(Requirement(line).name) for line in extras.pop("bnb")}
    wanted = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            assert requirement.specifier.contains(versions[name]), requirement
    assert not unpinned & versions.keys()
