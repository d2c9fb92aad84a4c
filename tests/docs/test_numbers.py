"""Numbers in the documentation are those of docs/results, whatever the prose around them says."""

import re

import pytest

from docs.measured import (
    ALLOWED,
    OTHER,
    QUOTED,
    RESULTS,
    SURROGATE,
    changes,
    contrastive_cost,
    load,
    numbers,
    regions,
    with_deviation,
)
from docs.reading import ROOT, prose, script

CASES = [(page, region) for page, quoted in QUOTED.items() for region in quoted]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page, region", CASES, ids=lambda part: part)
def test_quoted_numbers_are_those_of_the_results(page, region):
    text = regions(read(page)).get(region)
    assert text is not None, f"{page} has no region numbers:{region}"
    quoted = numbers(text)
    missing = {what: number for what, number in QUOTED[page][region].items() if number not in quoted}
    assert missing == {}, f"{page}, region {region}: these numbers of docs/results are not there"


@pytest.mark.parametrize("page, region", CASES, ids=lambda part: part)
def test_no_other_number_is_quoted(page, region):
    known = set(QUOTED[page][region].values()) | ALLOWED.get((page, region), set())
    if page == "README.md":
        known |= numbers(domains_table())
    text = re.sub(r"\]\([^)]*\)", "]", regions(read(page))[region])
    assert numbers(text) - known == set()


def test_the_number_of_questions_is_that_of_the_files():
    assert {str(load(name)["settings"]["limit"]) for name in ("apparel", "digits")} == {"500"}


def domains_table() -> str:
    """README's table, made of the result files."""
    runs = load("apparel")["runs"] + load("digits")["runs"]
    return script("measure_domains").table(runs, SURROGATE)


def test_readme_has_the_table_of_the_results():
    assert domains_table() in read("README.md")


def test_the_reason_for_the_contrastive_default_has_its_number():
    cost = contrastive_cost()["cost of the contrastive loss"]
    assert cost in numbers(prose(read("src/craft/training/config.py")))


# docs/results/development.md: every row of its tables is computed here.

DEVELOPMENT = "docs/results/development.md"


def gains(runs, blend, groups=("seen", "unseen")) -> str:
    """Cells of a table: mean points over the base tower (blend 0) ± deviation, for both LLMs."""
    cells = []
    for backbone in (SURROGATE, OTHER):
        for group in groups:
            points = []
            for run in runs:
                rows = {row["blend"]: row for row in run["rows"] if row["backbone"] == backbone}
                points.append(rows[blend][group] - rows[0.0][group])
            cells.append(with_deviation(points))
    return " | ".join(cells)


def development_rows() -> list[str]:
    """The rows of all tables but the first two of retention."""
    rows = []
    apparel = load("development")["runs"]
    named = {
        "`max_steps=800`": ({"max_steps": 800}, 0.3),
        "`max_steps=1200`": ({"max_steps": 1200}, 0.3),
        "`max_steps=800 batch_size=48 learning_rate=6e-4`": (
            {"max_steps": 800, "batch_size": 48, "learning_rate": 6e-4},
            0.3,
        ),
        "`max_steps=800 trainable=all`": ({"max_steps": 800, "trainable": "all"}, 0.3),
        "`max_steps=400 learning_rate=1e-3`": ({"max_steps": 400, "learning_rate": 1e-3}, 0.3),
        "`max_steps=800 learning_rate=1e-3`": ({"max_steps": 800, "learning_rate": 1e-3}, 0.3),
        "`max_steps=800 blend=0.5`": ({"max_steps": 800}, 0.5),
        "`max_steps=800 blend=1`": ({"max_steps": 800}, 1.0),
    }
    for name, (settings, blend) in named.items():
        rows.append(f"| {name} | {gains([r for r in apparel if r['settings'] == settings], blend)} |")
    retention = load("retention-development")["runs"]
    for name, weight, blend in (
        ("0, and `blend=0.3`", 0, 0.3),
        ("0, and `blend=0.6`", 0, 0.6),
        ("0, and `blend=1`", 0, 1.0),
        ("3", 3, 1.0),
    ):
        runs = [run for run in retention if run["losses.retention.weight"] == weight]
        rows.append(f"| {name} | {gains(runs, blend)} |")
    shares = load("blend")
    for domain in ("sketch", "scenes"):
        runs = [run for run in shares["runs"] if run["domain"] == domain]
        rows += [f"| `blend={blend:g}` | {gains(runs, blend)} |" for blend in (0.3, 0.7, 1.0)]
    fewer = shares["fewer classes"]["runs"]
    for share in sorted({run["unseen"] for run in fewer}, reverse=True):
        runs = [run for run in fewer if run["unseen"] == share]
        rows += [f"| `blend={blend:g}` | {gains(runs, blend, ('unseen',))} |" for blend in (0.3, 1.0)]
    sketch = load("development-sketch")["runs"]
    for name, settings, blend in (
        ("the default (`blend=1` there)", "max_steps=200", 1.0),
        ("`blend=0.6`", "max_steps=200", 0.6),
        ("`trainable=all`", "trainable=all", 1.0),
        ("`trainable=all blend=0.6`", "trainable=all", 0.6),
        ("`trainable=all blend=0.6 augment=2`", "augment=2.0 trainable=all", 0.6),
        ("`learning_rate=1.5e-4`", "learning_rate=1.5e-4", 1.0),
        ("`max_steps=400`", "max_steps=400", 1.0),
        ("`losses.contrastive.weight=0.1`", "losses.contrastive.weight=0.1", 1.0),
        ("`losses.commitment.weight=1`", "losses.commitment.weight=1.0", 1.0),
        ("`data.distractors=hard`", "data.distractors=hard", 1.0),
    ):
        rows.append(f"| {name} | {gains([r for r in sketch if r['set'] == settings], blend)} |")
    return rows


def holdout_rows() -> list[str]:
    """The table of the retention loss on the test split: weights 0, 3 and 1, over every measured hold-out."""
    files = {
        "0, and `blend=0.3`": ["retention-0", "retention-0-seeds"],
        "3": ["apparel", "digits", "apparel-seeds"],
        "1": ["retention-1", "retention-1-seeds"],
    }
    rows = []
    for domain, count in (("apparel", 10), ("digits", 3)):
        for weight, names in files.items():
            runs = [run for name in names for run in load(name)["runs"] if run["domain"] == domain]
            assert sorted(run["seed"] for run in runs) == list(range(count))
            cells = [
                with_deviation(changes(runs, model, group), 100)
                for model in (SURROGATE, OTHER)
                for group in ("accuracy", "seen", "unseen")
            ]
            rows.append(f"| {weight} | {' | '.join(cells)} |")
    return rows


def test_development_tables_are_those_of_the_results():
    text = read(DEVELOPMENT)
    wanted = development_rows() + holdout_rows()
    missing = [row for row in wanted if row not in text]
    assert missing == []
    measured = [
        line
        for line in text.splitlines()
        if line.startswith("|") and re.search(r"[-+]\d+\.\d ± \d+\.\d \|", line)
    ]
    assert len(measured) == len(wanted), "development.md has a row that is not checked"


def values(result) -> set[str]:
    """Every number and text in a result, as it is written."""
    if isinstance(result, dict):
        return {written for part in result.values() for written in values(part)}
    if isinstance(result, list):
        return {written for part in result for written in values(part)}
    return {str(result)}


def test_tables_of_the_benchmarks_are_those_of_the_results(experiment_names):
    """All numbers of a table are those of one file: a number of another one would be an accident."""
    files = [path for path in RESULTS.glob("*.json") if path.stem not in experiment_names]
    known = [values(load(path.stem)) for path in files]
    tables = re.findall(
        r"(?:^\|.*\n?)+", read("benchmarks/README.md").partition("## Measured")[2], re.MULTILINE
    )
    assert len(tables) >= 8
    for table in tables:
        cells = {cell.strip() for line in table.splitlines()[2:] for cell in line.strip("|").split("|")}
        quoted = {cell for cell in cells if cell[:1].isdigit()}
        missing = [{n for n in quoted if not {n, n.rstrip("x")} & written} for written in known]
        assert quoted and not min(missing, key=len), "not in docs/results; put there what the benchmark wrote"
