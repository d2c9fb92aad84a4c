"""The house rules: floors import downwards only, and a few promises that hold for every source file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "craft"
FILES = sorted(PACKAGE.rglob("*.py"))

# A package imports packages of lower floors and itself, never a sibling on its own floor.
FLOORS = {
    "core": 0,
    "quantize": 1,
    "losses": 1,
    "pruning": 1,
    "data": 1,
    "models": 2,
    "training": 3,
    "evaluation": 4,
    "pages": 4.8,
    "recipes": 5,
    "baselines": 5.2,
    "experiments": 5.5,
    "cli": 6,
    "__main__": 7,
}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())


def part(path: Path) -> str:
    """The package or top-level module of craft that a file belongs to; "" for craft/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(tree: ast.AST, module: str) -> set[str]:
    """Dotted names of everything under craft that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name == "craft" or name.startswith("craft.")}


def violations(here: str, names: set[str]) -> list[str]:
    """Which imports of a package break the rule."""
    wrong = []
    for name in sorted(names):
        there = name.split(".")[1] if "." in name else ""
        if there in FLOORS and there != here and FLOORS[there] >= FLOORS[here]:
            wrong.append(name)
        elif there not in FLOORS and name not in {"craft.__version__"}:
            wrong.append(name)  # the lazy names of `import craft` lie above everybody
    return wrong


def test_the_rule_itself():
    tree = ast.parse(
        "def f():\n    from craft.models import load\nimport craft.core.files\nfrom ..losses import x"
    )
    names = imported(tree, "craft.data.choices")
    assert names == {"craft.models.load", "craft.core.files", "craft.losses.x"}
    assert violations("data", names) == ["craft.losses.x", "craft.models.load"]
    assert violations("training", names) == []
    assert violations("models", {"craft.load", "craft"}) == ["craft", "craft.load"]
    assert violations("models", {"craft.__version__"}) == []


@every_file
def test_floors_import_downwards_only(path):
    if not part(path):
        return  # the package itself: names lazily what lies above
    assert part(path) in FLOORS, (
        f"{part(path)} has no floor yet: give it one in FLOORS and in the design notes"
    )
    module = ".".join(("craft", *path.relative_to(PACKAGE).with_suffix("").parts))
    assert violations(part(path), imported(ast.parse(path.read_text()), module)) == []


@every_file
def test_no_pickle_and_only_the_top_floor_prints(path):
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            wrong += sorted(modules & {"pickle", "dill", "cloudpickle", "joblib"})
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            allowed = part(path) == "cli" or path == PACKAGE / "core" / "progress.py"
            wrong += [] if allowed else [f"line {node.lineno}: print"]
        if ast.unparse(node.func) == "torch.load":
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            wrong += [] if safe else [f"line {node.lineno}: torch.load without weights_only=True"]
        if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
            wrong.append(f"line {node.lineno}: allow_pickle")
    assert wrong == []


@every_file
def test_public_names_have_docstrings_and_types(path):
    wrong = []

    def visit(node, inside_class):
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if child.name.startswith("_"):
                continue
            if ast.get_docstring(child) is None and not (inside_class and child.name == "forward"):
                wrong.append(f"line {child.lineno}: {child.name} has no docstring")
            if isinstance(child, ast.ClassDef):
                visit(child, True)
                continue
            arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
            untyped = [
                a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls", "ctx"}
            ]
            if untyped or child.returns is None:
                wrong.append(
                    f"line {child.lineno}: {child.name} lacks types ({', '.join(untyped) or 'result'})"
                )

    tree = ast.parse(path.read_text())
    if ast.get_docstring(tree) is None and path.read_text().strip():
        wrong.append("the module has no docstring")
    visit(tree, False)
    assert wrong == []


@every_file
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 500


def test_import_craft_is_light():
    """`import craft` alone loads none of the libraries that take seconds."""
    code = (
        "import sys, craft; "
        "print(sorted({'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_runtime_type_checks_are_on():
    """A call with a wrong type fails in tests (see conftest.py)."""
    import os

    from craft.core.seeding import seed_everything

    if os.environ.get("CRAFT_TYPECHECK") == "0":
        pytest.skip("switched off by CRAFT_TYPECHECK=0")
    with pytest.raises(Exception, match=r"type hint|Type-check"):
        seed_everything("zero")  # type: ignore[arg-type]
