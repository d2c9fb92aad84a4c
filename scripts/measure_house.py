"""Count the house: lines and files for each folder, verbs, flags, settings, and habits of the code.

    python scripts/measure_house.py [--root CHECKOUT] [--environment VENV] [--json]

`--root` may be another checkout, an older one too, so that a change is counted before and after by the same
rules. `--environment` also reports the size of an installed environment. The interpreter that runs this must
be able to import the checkout's dependencies.
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PARAMETERS, BODY = 8, 60
NAMES = {"told", "found", "given", "place"}

# Runs in the checkout: every verb's flags, and the dotted names of every setting.
PROBE = """
import importlib, json, pkgutil
from cyclopts import App
from craft.cli import main as cli
import craft

app = cli.app if hasattr(cli, "app") else importlib.import_module("craft.cli.main").app
verbs, flags = [], set()

def visit(app, words):
    for name, below in app._commands.items():
        if name.startswith("-"):
            continue
        if any(not inner.startswith("-") for inner in below._commands):
            visit(below, [*words, name])
            continue
        verbs.append(" ".join([*words, name]))
        for argument in below.assemble_argument_collection():
            flags.update((verbs[-1], flag) for flag in argument.names[:1] if flag.startswith("--"))

visit(app, [])
for name in ("craft.core.settings", "craft.training.settings"):
    try:
        settings = importlib.import_module(name)
        break
    except ModuleNotFoundError:
        pass
for module in pkgutil.walk_packages(craft.__path__, "craft."):
    if "triton" not in module.name and not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            pass

def below(kind):
    for one in kind.__subclasses__():
        yield one
        yield from below(one)

keys = {name for kind in below(settings.Settings) for name in settings.leaves(kind)}
print(json.dumps({"verbs": len(verbs), "flags": len({flag for _, flag in flags}), "verb flags": len(flags),
                  "settings": len(keys)}))
"""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameter_count(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters without self and cls."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in {"self", "cls"} for argument in arguments)


def variables(tree: ast.AST) -> Iterator[str]:
    """Names that are assigned, and parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def import_graph(trees: dict[str, ast.AST]) -> dict[str, set[str]]:
    """Which files import which, inside functions too; `__init__` files are left out."""
    graph = {}
    for name, tree in trees.items():
        targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = (targets & trees.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that reach each other."""
    reach = {name: set(below) for name, below in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {tuple(sorted(o for o in reach[n] if n in reach[o])) for n in graph if n in reach[n]}
    return [list(group) for group in sorted(groups)]


def measure(root: Path) -> dict[str, object]:
    """All counts of a checkout."""
    package = root / "src" / "craft"
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    folders: dict[str, list[int]] = {}
    roots = [package, root / "paper", root / "tests"]
    for top in roots:
        for path in sorted(top.rglob("*.py")):
            inside = path.relative_to(top).parts
            name = top.name if top != package else ("craft" if len(inside) == 1 else f"craft/{inside[0]}")
            count = folders.setdefault(name, [0, 0])
            count[0] += 1
            count[1] += len(path.read_text(encoding="utf-8").splitlines())
    every = [node for tree in trees.values() for node in functions(tree)]
    names = {
        ".".join(("craft", *path.relative_to(package).with_suffix("").parts)): tree
        for path, tree in trees.items()
        if path.name != "__init__.py"
    }
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    probe = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "craft", "--help"], env=environment, capture_output=True, check=True
        )
        seconds.append(time.perf_counter() - began)
    return {
        "files": len(sources),
        "lines": sum(len(text.splitlines()) for text in sources.values()),
        "largest file": max(len(text.splitlines()) for text in sources.values()),
        "folders (files, lines)": folders,
        **json.loads(probe.stdout.splitlines()[-1]),
        "functions": len(every),
        f"parameters > {PARAMETERS}": sum(parameter_count(node) > PARAMETERS for node in every),
        f"bodies > {BODY} lines": sum(body_lines(node) > BODY for node in every),
        "lines with Any": sum(
            "Any" in line.split("#")[0] and "import" not in line
            for text in sources.values()
            for line in text.splitlines()
        ),
        "circles of files": circles(import_graph(names)),
        "variables named " + "|".join(sorted(NAMES)): sum(
            name in NAMES for tree in trees.values() for name in variables(tree)
        ),
        "seconds of craft --help": round(statistics.median(seconds), 2),
    }


def size_of(folder: Path) -> int:
    """MiB of an environment."""
    return (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        >> 20
    )


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = measure(options.root.resolve())
    if options.environment:
        counts["environment, MiB"] = size_of(options.environment)
    if options.json:
        print(json.dumps(counts, indent=2))
        return
    for name, value in counts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, (files, lines) in value.items():
                print(f"    {inner:<24}{files:>5}{lines:>8}")
        else:
            print(f"{name:<44}{value}")


if __name__ == "__main__":
    main()
