"""A token table in the native layout: a backbone's `table/model.safetensors`, instead of projector/.

`ids` int64 `[L, K]` names the LLM's token of each code at each level. A backbone that names its LLM instead
of holding it stores `rows` `[L * K, h]` too, which are appended to that LLM's input embedding when it is
loaded. The output embedding stays as it was: the LLM's text does not change, and it never writes a code.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from craft.core.errors import CheckpointError
from craft.core.tensors import load_tensors, save_tensors
from craft.models.backbone import Backbone
from craft.models.token_table import TokenTable

FILE = "model.safetensors"


def save_table(folder: Path, backbone: Backbone, dtype: torch.dtype) -> None:
    """Write the token table of a backbone into `folder`.

    Args:
        folder: `table/`, which must not exist yet.
        backbone: with a token table.
        dtype: of the rows on disk.

    Raises:
        CheckpointError: rows were appended to an LLM that the backbone holds, whose folder has no place for
            them.
    """
    table, head = backbone.table, backbone.llm.get_output_embeddings()
    assert table is not None
    if backbone.borrowed is None and head is not None and len(head.weight) != len(backbone.embeddings.weight):
        raise CheckpointError(
            "This LLM has more input than output tokens, because rows for codes were appended, and its own "
            "folder could not be read again; save it as a backbone that names its LLM (`Borrowed`)."
        )
    tensors: dict[str, Tensor] = {"ids": table.ids.cpu()}
    if backbone.borrowed is not None:
        rows = table.rows(backbone.embeddings).flatten(0, 1)
        tensors["rows"] = rows.to(dtype).cpu()
    save_tensors(folder / FILE, tensors)


def load_table(folder: Path, llm: PreTrainedModel) -> TokenTable:
    """Read a token table, and append its rows, if it has some, to the LLM's input embedding.

    Args:
        folder: `table/`.
        llm: the LLM of the backbone, changed in place.

    Raises:
        CheckpointError: the file is missing or damaged, or its rows do not fit its ids or the LLM.
    """
    path = folder / FILE
    tensors = load_tensors(path)
    ids, rows = tensors.get("ids"), tensors.get("rows")
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or not ids.numel() or int(ids.min()) < 0:
        raise CheckpointError(f"{path} has no token ids [L, K]; copy the whole folder again.")
    if rows is not None:
        embeddings = llm.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        first, width = embeddings.weight.shape
        expected = torch.arange(first, first + ids.numel()).view(ids.shape)
        if rows.shape != (ids.numel(), width) or not torch.equal(ids.long(), expected):
            raise CheckpointError(
                f"{path}: {list(rows.shape)} rows and ids from {int(ids.min())} on do not fit an LLM with "
                f"{first} tokens of width {width}; the backbone was made for another LLM."
            )
        append_rows(llm, rows)
    return TokenTable(ids)


def append_rows(llm: PreTrainedModel, rows: Tensor) -> None:
    """Append rows `[n, h]` to an LLM's input embedding, in place; its output embedding does not change."""
    old = llm.get_input_embeddings()
    assert isinstance(old, nn.Embedding)
    longer = torch.cat([old.weight.detach(), rows.to(old.weight)])
    head = llm.get_output_embeddings()
    if head is not None and head.weight is old.weight:  # tied: the output embedding keeps the old rows
        head.weight = nn.Parameter(old.weight.detach().clone(), requires_grad=False)
        llm.config.tie_word_embeddings = False
    old.weight = nn.Parameter(longer, requires_grad=False)
    old.num_embeddings = len(longer)
