"""How names and answers are compared and written: letter case, spaces, underscores, encoding."""

import re
import sys
import unicodedata
from collections.abc import Iterable

from craft.core.errors import DataError


def normalise(text: str) -> str:
    """The form in which answers are compared (§4.1): letter case, whitespace and the Unicode form ("é" as one
    character or as two) do not count."""
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def words(name: str) -> str:
    """A file or folder name as words: "ankle_boot" -> "ankle boot". Hyphens and letter case stay."""
    return re.sub(r"[_\s]+", " ", name).strip()


def squeezed(name: str) -> str:
    """The letters and digits of any script, in lower case: "Annual_Crop" -> "annualcrop"."""
    return re.sub(r"[\W_]", "", name.lower())


def is_text(text: str) -> bool:
    """Whether the text can be stored as UTF-8. A file name in another encoding cannot, and neither can a text
    that was cut inside a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def brief(value: object, most: int = 80) -> str:
    """A value for a message: its `repr`, cut to `most` characters, so that no message is a whole image."""
    text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= most else f"{text[:most]}…"


def difference(one: str, other: str) -> str:
    """What two names with the same normal form (`normalise`) differ in, for messages: they may look alike."""
    composed = [unicodedata.normalize("NFC", name) for name in (one, other)]
    if composed[0] == composed[1]:
        return "in the encoding of accents alone (Unicode NFC and NFD)"
    spaced = [" ".join(name.split()) for name in composed]
    return "in spaces alone" if spaced[0] == spaced[1] else "in letter case or spaces alone"


def refuse_locale(names: Iterable[str]) -> None:
    """Refuse file names that are not ASCII if this process takes file names for another encoding than UTF-8:
    the files would seem to be missing or misnamed.

    Raises:
        DataError: there is one. The message blames the locale, not the file.
    """
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") == "utf8":
        return
    if (name := next((name for name in names if not name.isascii()), None)) is not None:
        raise DataError(
            f"in this locale, Python takes the names of files for {encoding}, and {name!a} is not ASCII. Set "
            " PYTHONUTF8=1 (or LC_ALL=C.UTF-8), and run the same command again."
        )
