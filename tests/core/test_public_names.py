"""`import craft` and `craft VERB`: names, signatures and flags that others rely on (public_api.txt).

Whoever removes or renames one breaks someone's script. After a change that is meant:
`pytest tests/core/test_public_names.py --update-public-api`, and read the difference before it is committed.
"""

import inspect
from pathlib import Path

import pytest

import craft
from craft.cli.main import app
from craft.core import errors
from craft.data import Data, Sample
from craft.evaluation.report import Report
from craft.formats.artefact import Artefact
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.pages.matrix import TransferMatrix
from craft.quantize import ResidualCodebook
from craft.recipes.adapt import AdaptResult
from craft.recipes.align import AlignResult

SNAPSHOT = Path(__file__).with_name("public_api.txt")
CLASSES = (
    craft.VisionTokens,
    LVLM,
    VisualTokenizer,
    Backbone,
    ResidualCodebook,
    Sample,
    Data,
    Artefact,
    AdaptResult,
    Report,
    TransferMatrix,
    AlignResult,
)


def signature(function):
    """Parameters with their defaults. Types are left to the type checker; Python's versions print them
    differently."""
    plain = inspect.signature(function).replace(return_annotation=inspect.Signature.empty)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in plain.parameters.values()]
    return str(plain.replace(parameters=parameters))


def members(kind):
    """A class: how it is made, and its public methods and properties."""
    lines = [f"{kind.__name__}{signature(kind)}"]
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        function = getattr(value, "__func__", value)  # of class and static methods
        if isinstance(value, property):
            lines.append(f"    .{name}")
        elif inspect.isfunction(function):
            lines.append(f"    .{name}{signature(function)}")
    return lines


def package_names():
    """Everything in `craft.__all__`, and in that of its packages."""
    lines = []
    for name in craft.__all__:
        value = getattr(craft, name)
        if inspect.ismodule(value):
            listed = getattr(value, "__all__", None) or []
            lines.append(f"craft.{name}: {', '.join(sorted(listed)) or '(no list)'}")
        elif inspect.isfunction(value):
            lines.append(f"craft.{name}{signature(value)}")
        else:
            lines.append(f"craft.{name}")
    return lines


def verbs(command, words=("craft",)):
    """Each verb: what stands without a flag, then its flags."""
    inner = [name for name in command if not name.startswith("-")]
    for name in inner:
        yield from verbs(command[name], (*words, name))
    if not inner:
        arguments = [one for one in command.assemble_argument_collection() if one.names[0] != "*"]
        positional = [one.names[0].removeprefix("--").upper() for one in arguments if one.index is not None]
        flags = [name for one in arguments for name in one.names if name.startswith("-")]
        yield " ".join([*words, *positional])
        yield from (f"    {flag}" for flag in flags)


def public_api():
    """The whole snapshot."""
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    sections = {
        "Names of `import craft`": package_names(),
        "Classes": [line for kind in CLASSES for line in members(kind)],
        "Errors": [kind.__name__ for kind in kinds],
        "Verbs and flags": list(verbs(app)),
    }
    head = "Made by `pytest tests/core/test_public_names.py --update-public-api`."
    blocks = ("\n".join([f"# {title}", *lines]) for title, lines in sections.items())
    return "\n\n".join([head, *blocks]) + "\n"


def test_names_signatures_and_flags_are_what_they_were(request):
    api = public_api()
    if request.config.getoption("--update-public-api"):
        SNAPSHOT.write_text(api, encoding="utf-8")
        pytest.skip(f"{SNAPSHOT.name} is written; read the difference")
    assert api == SNAPSHOT.read_text(encoding="utf-8")


def test_unknown_names_are_refused():
    assert dir(craft) == sorted(craft.__all__)
    with pytest.raises(AttributeError, match="'adopt'"):
        craft.adopt  # noqa: B018


def test_one_base_for_errors():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(kinds) > 1 and all(issubclass(kind, craft.CraftError) for kind in kinds)
