"""The wheel and the source archive: what is in them, and that the wheel works outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from docs.reading import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


def run(*command, cwd):
    """What a command prints; it must succeed. It does not see the variables that lead to the checkout."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"COLUMNS": "200"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive that hatchling builds from the checkout, without network."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The scripts of a new environment with the wheel in it, and an empty folder to work in.

    Its other packages are those of the environment that runs the tests. They follow the wheel on the path,
    and an editable installation among them is not followed.
    """
    folder = tmp_path_factory.mktemp("away")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / SCRIPTS / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, *install, archives[0], cwd=folder)
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    shared = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    work = folder / "work"
    work.mkdir()
    return python.parent, work


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    package = {name for name in names if name.startswith("craft/")}
    files = (path for path in (ROOT / "src/craft").rglob("*") if path.is_file())
    assert package == {
        path.relative_to(ROOT / "src").as_posix() for path in files if "__pycache__" not in path.parts
    }
    for needed in (
        "py.typed",
        "shipped/craft-tiny/visual/model.safetensors",
        "data/domains/apparel/train.png",
    ):
        assert f"craft/{needed}" in package
    (info,) = {name.partition("/")[0] for name in names - package}
    licences = {name.removeprefix(f"{info}/licenses/") for name in names if "/licenses/" in name}
    texts = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "src/craft/data/domains").glob("*/LICENSE")
    }
    assert info.endswith(".dist-info") and licences == {"LICENSE", "NOTICE"} | texts


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of files that git keeps")
def test_the_source_archive_holds_what_git_keeps(archives):
    listed = run("git", "ls-files", cwd=ROOT).splitlines()
    kept = {name for name in listed if (ROOT / name).is_file()}  # not what is deleted and not yet committed
    with tarfile.open(archives[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert kept - names == set()


def test_the_wheel_works_outside_the_checkout(installed):
    scripts, work = installed
    where = run(scripts / "python", "-c", "import craft; print(craft.__file__)", cwd=work)
    assert Path(where.strip()).is_relative_to(scripts.parent)
    assert "adapt" in run(scripts / "craft", "--help", cwd=work)
    domains = run(scripts / "craft", "data", "list", cwd=work)
    assert all(name in domains for name in ("apparel", "digits", "sketch", "scenes"))
    read = (
        "from craft.data import load_data\n"
        "from craft.data.domains.embedded import EMBEDDED\n"
        "print(*(name for name in EMBEDDED if load_data(name).test[0].image is not None))"
    )
    assert run(scripts / "python", "-c", read, cwd=work).split() == ["apparel", "digits", "sketch", "scenes"]


def test_the_demo_runs_outside_the_checkout(installed):
    scripts, work = installed
    table = run(scripts / "craft", "demo", "--max-steps", 5, "--limit", 20, cwd=work)
    assert "craft-tiny/qwen2" in table and "craft-tiny/llama" in table
    assert (work / "runs/demo-apparel/demo.json").is_file()
