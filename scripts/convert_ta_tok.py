"""Convert `ta_tok.pth` of csuhan/TA-Tok to safetensors and JSON: python scripts/convert_ta_tok.py FILE FOLDER

The file is a pickle whose settings are of a class of another package (easydict), so it cannot be read with
`weights_only=True`. **Reading it can run code that is in it.** Run this only on a file that you trust, in a
process of its own; CRAFT itself never opens it. The pickle-free way is the shards of csuhan/Tar-7B-v0.1.
"""

import argparse
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


class EasyDict(dict[str, Any]):
    """A stand-in for easydict's class, with which the settings were pickled."""

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


def convert(file: Path, folder: Path) -> tuple[int, Path]:
    """Write `ta_tok.safetensors` and `ta_tok.json`.

    Args:
        file: `ta_tok.pth`, whose content is `{"model": {"args": settings, "sd": tensors}}`.
        folder: the folder to write, which must not hold either file.

    Returns:
        The number of tensors, and the folder.

    Raises:
        SystemExit: the file holds something else, or a file would be replaced.
    """
    targets = [folder / "ta_tok.safetensors", folder / "ta_tok.json"]
    if existing := [str(path) for path in targets if path.exists()]:
        sys.exit(f"{existing[0]} exists; remove it, or give another folder.")
    if "easydict" not in sys.modules:
        module: Any = types.ModuleType("easydict")
        module.EasyDict = EasyDict
        sys.modules["easydict"] = module
    try:
        content = torch.load(file, map_location="cpu", weights_only=False)
        model = content["model"]
        tensors = {name: value.contiguous().clone() for name, value in model["sd"].items()}
        settings = json.loads(json.dumps(model["args"], default=str))
    except (OSError, pickle.UnpicklingError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        sys.exit(f'{file} does not hold {{"model": {{"args", "sd"}}}} as ta_tok.pth does: {error!r}')
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, targets[0], {"format": "pt"})
    targets[1].write_text(json.dumps({"model": {"args": settings}}, indent=1) + "\n", encoding="utf-8")
    return len(tensors), folder


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="ta_tok.pth; reading it can run code that is in it")
    parser.add_argument("folder", type=Path, help="where to write, such as TA-Tok beside the LLM's folder")
    arguments = parser.parse_args()
    count, folder = convert(arguments.file, arguments.folder)
    print(f"{count} tensors and the settings are in {folder}")


if __name__ == "__main__":
    main()
