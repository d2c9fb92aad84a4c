"""Small readers of the project's Markdown, shared by the tests of the documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    if page.is_file()
)


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language ("" for those without)."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name.strip() == language]


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


def tree(text: str) -> list[Path]:
    """The paths that the indented tree of README.md names."""
    body = next(block for block in blocks(text, "") if block.startswith("src/craft/"))
    paths: list[Path] = []
    above: list[Path] = []
    for line in body.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], (above[depth - 1] if depth else Path()) / name]
        paths.append(above[-1])
    return paths
