"""Small readers of the project's Markdown, shared by the tests of the documentation."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("train_tiny/*.md"),
    ]
    if page.is_file()
)


def prose(text: str) -> str:
    """The text without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Targets of the inline links."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def symbols(text: str) -> list[tuple[str, str]]:
    """(file, dotted name or "") of every `folder/file.py` and `folder/file.py:name` in backticks."""
    return re.findall(r"`((?:\w+/)+\w+\.py)(?::([\w.]+))?`", text)


def settings(text: str) -> list[tuple[str, str]]:
    """(dotted name, value) of every `name=value` in backticks."""
    return re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)=([^`\s]+)`", text)


def python_blocks(text: str) -> list[tuple[str, str]]:
    """(code, reason why it is not run, or "") of every Python block.

    A block that cannot run in a test says why behind its language: "```python needs a VILA-U checkpoint".
    """
    pairs = re.findall(r"^```python([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(code, reason.strip()) for reason, code in pairs]


def commands(text: str) -> list[str]:
    """Every command line of `craft` in the code blocks, continued lines joined, comments left out."""
    bodies = re.findall(r"^```(?!python)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for body in bodies for line in body.replace("\\\n", " ").splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.startswith("craft ")]


def script(name: str) -> ModuleType:
    """scripts/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
