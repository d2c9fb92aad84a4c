"""Draw README's figure: docs/figure.svg.

    python scripts/draw_figure.py

The drawing has a panel of its own and colours for both of GitHub's modes, so that it stays legible where the
mode of the page and that of the system differ.
"""

from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "docs" / "figure.svg"
WIDTH, HEIGHT = 940, 276

STYLE = """
  text { font-family: -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: var(--ink); }
  svg {
    --panel: #ffffff; --rim: #d0d7de; --ink: #1f2328; --faint: #59636e; --box: #f3f5f7; --line: #59636e;
    --trained: #ffd8a8; --edge: #bc4c00; --cell: #ced5dc; --mark: #0969da;
  }
  @media (prefers-color-scheme: dark) {
    svg {
      --panel: #161b22; --rim: #3d444d; --ink: #f0f6fc; --faint: #a7b0ba; --box: #262c36; --line: #a7b0ba;
      --trained: #7a3d00; --edge: #ff9d4d; --cell: #4a525d; --mark: #58a6ff;
    }
  }
  .panel { fill: var(--panel); stroke: var(--rim); }
  .frozen { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
  .trained { fill: var(--trained); stroke: var(--edge); stroke-width: 2; }
  .cell { fill: var(--cell); }
  .mark { fill: var(--mark); }
  .line { stroke: var(--line); stroke-width: 1.8; fill: none; marker-end: url(#head); }
  .back { stroke: var(--edge); stroke-width: 1.8; fill: none; stroke-dasharray: 6 4; }
  .back { marker-end: url(#back-head); }
  .head { fill: var(--line); }
  .back-head { fill: var(--edge); }
  .name { font-size: 17px; font-weight: 600; text-anchor: middle; }
  .note { font-size: 13px; fill: var(--faint); text-anchor: middle; }
  .hot { fill: var(--edge); font-weight: 600; }
  .code { font-size: 13px; font-family: ui-monospace, Menlo, Consolas, monospace; text-anchor: middle; }
"""

SHIRT = (
    "..##.##..",
    ".#######.",
    "#########",
    "#.#####.#",
    "..#####..",
    "..#####..",
    "..#####..",
    "..#####..",
)
CODES = ((17, 17, 4), (93, 52, 4), (93, 52, 8))
CHOSEN = {(0, 4), (2, 1), (3, 6), (4, 3)}


def box(x: int, y: int, width: int, height: int, kind: str, name: str, *notes: str) -> str:
    """A rounded box with its name and up to two notes."""
    middle, top = x + width // 2, y + height // 2 + 6 - 9 * len(notes)
    lines = [f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>']
    lines.append(f'<text class="name" x="{middle}" y="{top}">{name}</text>')
    hot = " hot" if kind == "trained" else ""
    for number, note in enumerate(notes):
        lines.append(f'<text class="note{hot}" x="{middle}" y="{top + 20 + 17 * number}">{note}</text>')
    return "\n".join(lines)


def caption(x: int, y: int, *lines: str) -> str:
    """Small lines of text, centred at `x`."""
    return "\n".join(
        f'<text class="note" x="{x}" y="{y + 17 * number}">{line}</text>' for number, line in enumerate(lines)
    )


def arrow(path: str, kind: str = "line") -> str:
    """An arrow along an SVG path."""
    return f'<path class="{kind}" d="{path}"/>'


def squares(x: int, y: int, size: int, places: dict[tuple[int, int], str]) -> str:
    """Squares of a grid: (row, column) -> class."""
    side = size - 2
    return "\n".join(
        f'<rect class="{kind}" x="{x + size * column}" y="{y + size * row}" '
        f'width="{side}" height="{side}" rx="2"/>'
        for (row, column), kind in places.items()
    )


def picture(x: int, y: int) -> str:
    """A shirt of squares."""
    shirt = {
        (row, column): "mark" if mark == "#" else "cell"
        for row, line in enumerate(SHIRT)
        for column, mark in enumerate(line)
    }
    return squares(x, y, 11, shirt)


def codebook(x: int, y: int) -> str:
    """A grid of codewords, some of them chosen."""
    words = {
        (row, column): "mark" if (row, column) in CHOSEN else "cell"
        for row in range(5)
        for column in range(8)
    }
    return squares(x, y, 14, words)


def codes(x: int, y: int) -> str:
    """The codes of an image as numbers."""
    return "\n".join(
        f'<text class="code" x="{x + 30 * column}" y="{y + 22 * row}">{code}</text>'
        for row, line in enumerate(CODES)
        for column, code in enumerate(line)
    )


def drawing() -> str:
    """The whole SVG."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="{name}" d="M0,0 L8,4 L0,8 z"/></marker>'
        for name in ("head", "back-head")
    )
    parts = [
        f'<rect class="panel" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12"/>',
        picture(30, 106),
        caption(79, 216, "image"),
        arrow("M138,150 H166"),
        box(172, 105, 150, 90, "trained", "vision tower", "trains"),
        arrow("M326,150 H358"),
        '<rect class="frozen" x="364" y="91" width="142" height="118" rx="10"/>',
        codebook(379, 104),
        '<text class="name" x="435" y="199">codebook</text>',
        caption(435, 228, "frozen"),
        arrow("M510,150 H540"),
        codes(556, 133),
        caption(586, 216, "codes"),
        arrow("M632,136 C660,120 660,92 690,86"),
        arrow("M632,164 C660,180 660,208 690,214"),
        box(696, 46, 214, 80, "frozen", "LLM A", "frozen: only scores", "the correct answers"),
        box(696, 174, 214, 80, "frozen", "LLM B", "frozen: took no part,", "gains from the same tower"),
        arrow("M803,42 C790,14 300,4 250,99", "back"),
        '<text class="note hot" x="500" y="56">gradient, during adaptation only</text>',
    ]
    title = "An image passes the vision tower, which trains, and a frozen codebook; two LLMs read the codes."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<defs>{heads}</defs>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
