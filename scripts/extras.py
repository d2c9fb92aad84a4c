"""Let pip resolve each extra of pyproject.toml with constraints.txt; nothing is installed: `make extras`."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADVICE = """\
{extras}: pip finds no versions that fit both pyproject.toml and constraints.txt, or does not reach its index;
its own messages are above. Change the version in constraints.txt, or the bound in pyproject.toml, that pip
names in the conflict. Then install into a fresh environment (make clean venv) and run the tests."""


def resolves(extra: str) -> bool:
    """Whether pip finds versions for the core with this extra; pip's own messages go to the terminal."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-c", "constraints.txt", f".[{extra}]"], cwd=ROOT, check=False)
    return done.returncode == 0


def main() -> None:
    """One line per extra; exit status 1 if one does not resolve."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    failed = []
    for extra in project["optional-dependencies"]:
        fits = resolves(extra)
        print(f"{extra}: {'resolves' if fits else 'DOES NOT RESOLVE'}", flush=True)
        if not fits:
            failed.append(extra)
    if failed:
        raise SystemExit(ADVICE.format(extras=", ".join(failed)))


if __name__ == "__main__":
    main()
