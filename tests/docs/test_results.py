"""docs/results: every page is made of the JSON beside it; no figure was typed by hand."""

import importlib.util
import json
import re

import pytest

from craft.pages.matrix import matrix_page
from docs.reading import ROOT
from paper import development, experiments

RESULTS = ROOT / "docs" / "results"
EXPERIMENTS = {**experiments.EXPERIMENTS, **development.DEVELOPMENT}
PAGES = sorted(path for path in RESULTS.rglob("*.md") if path.name != "README.md")


def domains_page(told):
    """The page of scripts/measure_domains.py."""
    spec = importlib.util.spec_from_file_location("measure", ROOT / "scripts" / "measure_domains.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.page(told)


MADE_BY = {
    **{name: experiment.page for name, experiment in EXPERIMENTS.items()},
    "transfer": matrix_page,
    "apparel": domains_page,
    "apparel-800": domains_page,
    **{f"retention-{weight}": domains_page for weight in (0, 1)},
    **{f"retention-{weight}-seeds": domains_page for weight in (0, 1)},
    "apparel-seeds": domains_page,
    "digits": domains_page,
}
"""What makes a page of its JSON, by the file's name."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_a_page_is_made_of_its_json(path):
    assert path.stem in MADE_BY, f"nothing makes {path.name}; put what writes it into MADE_BY"
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert MADE_BY[path.stem](told) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["apparel", "digits"])
def test_pages_of_domains_tell_how_many_questions_there_were(name):
    asked = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["settings"]["limit"]
    assert f"at most {asked} questions" in (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_results_of_experiments_have_their_pages():
    for path in RESULTS.rglob("*.json"):
        if path.stem in EXPERIMENTS:
            assert path.with_suffix(".md") in PAGES
            plan = json.loads(path.read_text())["provenance"]["plan"]
            assert not plan.get("quick"), "a quick run is no result"


def test_results_name_no_place_on_a_machine():
    """What was measured stays true elsewhere; where its files lay does not. Folders are told from where the
    command ran."""
    for path in RESULTS.rglob("*.json"):
        found = re.findall(r'"(/[^"]*|[A-Za-z]:[\\\\/][^"]*)"', path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found[:3]}"


def test_readme_says_of_the_matrix_what_its_json_says():
    told = json.loads((RESULTS / "transfer" / "transfer.json").read_text(encoding="utf-8"))
    own, other = (row for row in told["summary"] if row["data"] == "all")
    answers = {
        (cell["data"], cell["encoder"], cell["backbone"]): [one["accuracy"] for one in cell["reports"]]
        for cell in told["cells"]
    }
    reader = "craft-tiny/smollm2"
    gains = [
        after - before
        for (data, encoder, backbone), found in answers.items()
        if backbone == reader and encoder != "zero-shot"
        for after, before in zip(found, answers[data, "zero-shot", reader], strict=True)
    ]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"own LLM gains {100 * own['accuracy']:.1f} points" in text
    assert f"others behind the same tower {100 * other['accuracy']:.1f}," in text
    assert own["positive"] + other["positive"] == own["cells"] + other["cells"]
    assert f"all {own['cells'] + other['cells']} cells are above zero-shot" in text
    assert f"{-100 * own['unseen']:.1f} and {-100 * other['unseen']:.1f} points below it" in text
    mean = f"+{100 * sum(gains) / len(gains):.1f} points on average over {len(gains)} encoders"
    assert f"{mean}, up by {100 * min(gains):.1f} at least" in text


def test_what_the_contrastive_loss_costs_is_what_table_5_says():
    told = (RESULTS / "table5.md").read_text(encoding="utf-8").partition("Points ahead of")[2]
    (cost,) = re.findall(r"^\| without contrastive \|.* \+([\d.]+) \[[^|]*\|$", told, re.M)
    for place in ("README.md", "docs/paper_map.md", "src/craft/training/config.py"):
        assert f"costs {cost} points" in (ROOT / place).read_text(encoding="utf-8"), place


def test_the_paper_map_says_of_codes_per_image_what_figure_5_says():
    told = (RESULTS / "fig5.md").read_text(encoding="utf-8").partition("## How much there is")[2]
    rows = re.findall(r"^\| \w+ \| ([\d.]+) \| (\d+) % \|", told, re.M)
    codes, beyond = ([float(cell) for cell in column] for column in zip(*rows, strict=True))
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    assert f"have {min(codes):.0f} to {max(codes):.0f} different codes on average" in text
    assert f"at 0.2, in {min(beyond):.0f} to {max(beyond):.0f} % of the images" in text


def test_readme_says_of_the_third_surrogate_what_its_json_says():
    two, third = (
        json.loads((RESULTS / name / "transfer.json").read_text(encoding="utf-8"))["summary"]
        for name in ("transfer", "transfer-smollm2")
    )
    own, other = (row for row in third if row["data"] == "all")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    gains = [f"{100 * row['accuracy']:.1f}" for row in (own, other)]
    assert "itself {} points, the two small LLMs {},".format(*gains) in text
    assert f"in {own['positive'] + other['positive']} of {own['cells'] + other['cells']} cells" in text
    wholes = [[row for row in told if row["data"] == "all"] for told in (two, third)]
    means = [
        sum(row["accuracy"] * row["cells"] for row in rows) / sum(row["cells"] for row in rows)
        for rows in zip(*wholes, strict=True)
    ]
    cells = sum(row["cells"] for rows in wholes for row in rows)
    assert f"Of all {cells} cells that is {100 * means[0]:.1f} and {100 * means[1]:.1f}" in text


def test_what_unseen_classes_of_apparel_lose_is_told_as_it_was_measured():
    """In words beside the pages: over the seeds of one file, and of both."""
    first, more = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["runs"]
        for name in ("apparel", "apparel-seeds")
    )
    assert [run["seed"] for run in first + more] == list(range(10))

    def change(runs, model, group):
        rows = [run["rows"][model] for run in runs]
        return 100 * sum(row["adapted"][group] - row["zero-shot"][group] for row in rows) / len(rows)

    surrogate, other = "craft-tiny/qwen2", "craft-tiny/llama"
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    lost = [-change(runs, surrogate, "unseen") for runs in (first, first + more)]
    gained = [change(runs, other, "unseen") for runs in (first, first + more)]
    assert f"lose {lost[0]:.1f} points on the surrogate over the first three" in text
    assert (
        "{:.1f} over all ten; on the other LLM they gain {:.1f} and {:.1f}".format(lost[1], *gained) in text
    )
    gains = [f"{change(more, model, 'accuracy'):.1f}" for model in (surrogate, other)]
    assert "on seven further hold-outs [{} and {}]".format(*gains) in text
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "all classes gain {} and {} points".format(*gains) in readme


def test_what_the_retention_loss_does_is_told_as_it_was_measured():
    """The table of concepts.md: weights 0, 3 and 1, over every hold-out that was measured."""
    names = {
        "0, and `blend=0.3`": ["retention-0", "retention-0-seeds"],
        "3": ["apparel", "digits", "apparel-seeds"],
        "1": ["retention-1", "retention-1-seeds"],
    }
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for domain, count in (("apparel", 10), ("digits", 3)):
        for weight, files in names.items():
            told = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in files]
            runs = [run for one in told for run in one["runs"] if run["domain"] == domain]
            assert sorted(run["seed"] for run in runs) == list(range(count))
            cells = []
            for model in ("craft-tiny/qwen2", "craft-tiny/llama"):
                rows = [run["rows"][model] for run in runs]
                for group in ("accuracy", "seen", "unseen"):
                    gains = [row["adapted"][group] - row["zero-shot"][group] for row in rows]
                    cells.append(f"{100 * sum(gains) / count:+.1f}")
            assert f"| {weight} | {' | '.join(cells)} |" in text, (domain, weight)


def values(told):
    """Every number and text in a result, as it is written."""
    if isinstance(told, dict):
        return {written for part in told.values() for written in values(part)}
    if isinstance(told, list):
        return {written for part in told for written in values(part)}
    return {str(told)}


def test_measured_tables_of_the_benchmarks_are_in_their_json():
    """All numbers of a table are those of one file: a figure of another one would be an accident."""
    files = [path for path in RESULTS.glob("*.json") if path.stem not in EXPERIMENTS]
    known = [values(json.loads(path.read_text(encoding="utf-8"))) for path in files]
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n?)+", text.partition("## Measured")[2], re.M)
    assert len(tables) >= 8
    for table in tables:
        cells = {cell.strip() for line in table.splitlines()[2:] for cell in line.strip("|").split("|")}
        numbers = {cell for cell in cells if cell[:1].isdigit()}
        missing = [{n for n in numbers if not {n, n.rstrip("x")} & written} for written in known]
        assert numbers and not min(missing, key=len), (
            "not in docs/results; put there what the benchmark wrote"
        )
