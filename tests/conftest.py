"""Runtime type checks for the whole package, no network, and a quiet, repeatable torch."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

# A job in the background, or under nohup, ignores these, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Every annotated function and dataclass of craft is checked on each call; CRAFT_TYPECHECK=0 switches it off.
if os.environ.get("CRAFT_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("craft", "beartype.beartype")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that write the snapshots of evaluation/test_prompts.py and core/test_public_names.py anew."""
    parser.addoption("--update-prompts", action="store_true", help="write the snapshot of all prompts anew")
    parser.addoption(
        "--update-public-api",
        action="store_true",
        help="write the snapshot of names, signatures and flags anew",
    )
