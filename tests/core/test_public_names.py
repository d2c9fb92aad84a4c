"""`import craft`: every public name resolves, lazily; errors have one base."""

import pytest

import craft
from craft.core import errors


def test_names_are_listed_and_unknown_ones_refused():
    assert {"load", "adapt", "evaluate", "transfer", "quantize", "CraftError"} <= set(dir(craft))
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        craft.adopt  # noqa: B018


@pytest.mark.parametrize("name", craft.__all__)
def test_every_name_resolves(name):
    assert getattr(craft, name) is not None


def test_one_base_for_errors():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(kinds) == 6
    assert all(issubclass(kind, craft.CraftError) for kind in kinds)
