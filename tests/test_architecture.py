"""The house rules: floors import downwards only, and a few promises that hold for every source file."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "craft"
FILES = sorted(PACKAGE.rglob("*.py"))

# A package imports packages of lower floors and itself, never a sibling on its own floor.
ORDER = (
    ("core",),
    ("quantize", "losses", "pruning", "data"),
    ("models",),
    ("formats",),
    ("training",),
    ("lessons",),
    ("evaluation",),
    ("judging", "serving"),
    ("pages",),
    ("recipes",),
    ("cli",),
    ("__main__",),
)
FLOORS = {name: floor for floor, names in enumerate(ORDER) for name in names}

TEXTS = {path: path.read_text(encoding="utf-8") for path in FILES}
TREES = {path: ast.parse(text) for path, text in TEXTS.items()}
PAPER = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "paper").rglob("*.py"))}

# What is counted, and the names to avoid, are those of the script that reports them.
HOUSE = runpy.run_path(str(ROOT / "scripts" / "measure_house.py"))

# Public functions that name their settings one by one; a Triton kernel, whose arguments cannot be grouped.
LONG_SIGNATURES = {"load_data", "align", "ask", "_best"}


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(("craft", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


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


def test_craft_never_imports_what_stands_beside_it():
    """`paper` and `train_tiny` need the checkout; they import craft, never the other way round."""
    wrong = {}
    for path, tree in TREES.items():
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if outside := {name for name in names if name.partition(".")[0] in {"paper", "train_tiny", "tests"}}:
            wrong[module_of(path)] = outside
    assert wrong == {}


def test_floors_import_downwards_only():
    wrong = {}
    for path, tree in TREES.items():
        if not part(path):
            continue  # the package itself: names lazily what lies above
        assert part(path) in FLOORS, f"{part(path)} has no floor yet: give it one in ORDER"
        if upwards := violations(part(path), imported(tree, module_of(path))):
            wrong[module_of(path)] = upwards
    assert wrong == {}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of two or more files that import each other, directly or through others (Tarjan)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return groups


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_circles_between_files():
    """Imports inside functions count too: a circle hidden in a function is one to the reader as well.

    A package's `__init__` is left out: it gathers the names of its own files.
    """
    modules = {module_of(path) for path in FILES if path.name != "__init__.py"}
    graph: dict[str, set[str]] = {}
    for path, tree in TREES.items():
        if (here := module_of(path)) in modules:
            names = imported(tree, here)
            files = names | {name.rpartition(".")[0] for name in names}
            graph[here] = (files & modules) - {here}
    assert circles(graph) == []


def test_no_pickle_and_one_place_that_prints():
    wrong = []
    for path, tree in (TREES | PAPER).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                if str(getattr(node, "module", "")).startswith(
                    "rich"
                ):  # a table or a bar of its own may crop
                    wrong += (
                        [] if path.name in ("output.py", "progress.py") else [(path, node.lineno, "rich")]
                    )
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                wrong += [(path, name) for name in modules & {"pickle", "dill", "cloudpickle", "joblib"}]
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write"):
                wrong += [] if path.name == "streams.py" else [(path, node.lineno, "print")]
            if ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                wrong += [] if safe else [(path, node.lineno, "torch.load without weights_only=True")]
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
                wrong.append((path, node.lineno, "allow_pickle"))
    assert wrong == []


def test_public_names_have_docstrings_and_types():
    wrong = []

    def visit(path, node, inside_class):
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if child.name.startswith("_"):
                continue
            where = f"{path}:{child.lineno}: {child.name}"
            if ast.get_docstring(child) is None and not (inside_class and child.name == "forward"):
                wrong.append(f"{where} has no docstring")
            if isinstance(child, ast.ClassDef):
                visit(path, child, True)
                continue
            arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
            untyped = [
                a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls", "ctx"}
            ]
            if untyped or child.returns is None:
                wrong.append(f"{where} lacks types ({', '.join(untyped) or 'result'})")

    for path, tree in TREES.items():
        if ast.get_docstring(tree) is None and TEXTS[path].strip():
            wrong.append(f"{path}: the module has no docstring")
        visit(path, tree, False)
    assert wrong == []


def test_files_and_bodies_stay_short():
    """At most 500 lines a file and 60 a body, its docstring not counted."""
    assert [path for path, text in TEXTS.items() if len(text.splitlines()) > 500] == []
    bodies = [
        f"{module_of(path)}.{node.name}: {lines}"
        for path, tree in TREES.items()
        for node in HOUSE["functions"](tree)
        if (lines := HOUSE["body_lines"](node)) > HOUSE["BODY"]
    ]
    assert bodies == []


def test_variables_say_what_they_hold():
    """In craft and paper none is named by a participle that fits everything."""
    names = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in (TREES | PAPER).items()
        for name in HOUSE["variables"](tree)
        if name in HOUSE["NAMES"]
    ]
    assert names == []


def test_signatures_stay_short():
    """At most 8 parameters, self and cls not counted."""
    signatures = {
        node.name
        for tree in (TREES | PAPER).values()
        for node in HOUSE["functions"](tree)
        if HOUSE["parameter_count"](node) > HOUSE["PARAMETERS"]
    }
    assert signatures == LONG_SIGNATURES


def test_what_is_counted():
    """The rules of the two tests above, on a function that breaks both."""
    tree = ast.parse("def f(self, given, b, c, *, d, e, f, g, h, i):\n    for told in b: found = told")
    assert HOUSE["NAMES"] & {*HOUSE["variables"](tree)} == {"given", "told", "found"}
    assert [HOUSE["parameter_count"](node) for node in HOUSE["functions"](tree)] == [9]


def test_import_craft_is_light():
    """`import craft` alone loads none of the libraries that take seconds."""
    code = (
        "import sys, craft; "
        "print(sorted({'torch', 'transformers', 'accelerate', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_runtime_type_checks_are_on():
    """A call with a wrong type fails in tests (see conftest.py)."""
    from craft.core.seeding import seed_everything

    if os.environ.get("CRAFT_TYPECHECK") == "0":
        pytest.skip("switched off by CRAFT_TYPECHECK=0")
    with pytest.raises(Exception, match=r"type hint|Type-check"):
        seed_everything("zero")  # type: ignore[arg-type]
