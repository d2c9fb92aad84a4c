"""docs/reference.md lists every setting with its default, as the code has them."""

from craft.core.settings import leaves
from docs.reading import ROOT, script

TEXT = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
WRITER = script("write_reference")


def test_the_settings_are_those_of_the_code():
    assert WRITER.page(TEXT) == TEXT, "run `python scripts/write_reference.py`"


def test_every_setting_is_listed_and_explained():
    for model in WRITER.configs().values():
        rows = list(WRITER.settings(model))
        assert [name for name, _, _ in rows] == list(leaves(model))
        assert [name for name, _, text in rows if not text] == [], "the docstring of the class does not say"


def test_a_changed_default_changes_the_page(monkeypatch):
    """The test above can fail."""
    kind = WRITER.configs()["craft adapt"]
    monkeypatch.setattr(kind.model_fields["batch_size"], "default", 25)
    assert WRITER.page(TEXT) != TEXT
