"""Checks of JSON that CRAFT reads, with pydantic: what does not fit is a `CheckpointError` that names it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from craft.core.errors import CheckpointError

Size = Annotated[int, Field(ge=1, le=2**20)]
"""A width or a number of things. The upper bound lies far above that of any model."""

Layers = Annotated[int, Field(ge=1, le=1000)]
"""A number of layers, each of which takes time to build."""

_SHOWN = 3


class Record(BaseModel):
    """Fields of a JSON object, strict about types, without NaN or infinity; further fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


def check_record(
    kind: type[Record], content: object, where: str | Path, fix: str = "copy the whole folder again"
) -> dict[str, Any]:
    """`content`, unchanged, if it has the fields of `kind`.

    Args:
        content: what was read.
        where: the file, or what else the message names.
        fix: what the user can do.

    Raises:
        CheckpointError: it is no JSON object, a field is missing, or has another type or range.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} is not a JSON object, but a {type(content).__name__}; {fix}.")
    try:
        kind.model_validate(content)
    except ValidationError as error:
        faults = [_fault(item) for item in error.errors()]
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"{where} is damaged or from another program: {'; '.join(faults[:_SHOWN])}{more}. Please {fix}."
        ) from None
    return content


def _fault(item: Any) -> str:
    """One mistake that pydantic found, such as "seed cannot be 'a' (input should be a valid integer)"."""
    name = ".".join(map(str, item["loc"])) or "it"
    if item["type"] == "missing":
        return f"it lacks {name}"
    reason = item["msg"].removeprefix("Value error, ")
    return f"{name} cannot be {repr(item['input'])[:60]} ({reason[:1].lower()}{reason[1:]})"
