"""Print, as constraints for pip, the oldest releases that pyproject.toml accepts: `make oldest` tests them.

    python scripts/oldest.py --extras lora gguf --replace torch==2.13.0

The core's dependencies and those of the named extras stand at their lower bounds. Every other package
stands at its version in constraints.txt, so that the environment is the same each time.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNPINNED = {"pydantic-core", "rich-rst"}
"""What the oldest release of a dependency does not accept in the version of constraints.txt."""
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[.*\])?\s*(?P<operator>>=|==)\s*(?P<version>[0-9.]+)"
)


def normalized(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """The lowest version of each requirement, by normalized name.

    Raises:
        SystemExit: a requirement has no lower bound.
    """
    bounds = {}
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound: write name>=version.")
        bounds[normalized(match["name"])] = match["version"]
    return bounds


def tested_versions(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Normalized name and version of each line of constraints.txt."""
    for line in lines:
        name, equals, version = line.partition("==")
        if equals and not line.startswith("#"):
            yield normalized(name), version.strip()


def main() -> None:
    """Print one `name==version` per line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[], help="extras at their lower bounds too")
    parser.add_argument("--replace", nargs="*", default=[], metavar="NAME==VERSION", help="other versions")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = tuple(map(int, re.findall(r"\d+", project["requires-python"])[:2]))
    if sys.version_info[:2] != oldest:  # old releases have wheels for old Pythons only
        need = ".".join(map(str, oldest))
        raise SystemExit(f"The oldest releases need the oldest Python: make PYTHON=python{need} oldest")
    requirements = list(project["dependencies"])
    for extra in args.extras:
        requirements += project["optional-dependencies"][extra]
    others = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = {name: version for name, version in tested_versions(others) if name not in UNPINNED}
    versions |= lower_bounds(requirements) | lower_bounds(args.replace)
    print("\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))


if __name__ == "__main__":
    main()
