"""The text before the image, read once: its keys and values stand in front of every sample's.

LLM and text are the same in each step of a run, and attention is causal, so nothing behind the prefix changes
what the LLM makes of it. The gradient to the image is the same too: it never passes through the prefix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from craft.models.backbone import Backbone


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P tokens.

    Attributes:
        length: P.
        layers: per layer of the LLM keys and values `[1, heads, P, width]`, without gradient.
    """

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]


class _Fixed(DynamicLayer):
    """A layer of a cache that does not grow: a layer may run twice (gradient checkpointing)."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What stands in the cache, repeated for each sample, and the new keys and values behind it."""
        rows = key_states.shape[0]
        assert self.keys is not None and self.values is not None
        keys, values = (kept.expand(rows, -1, -1, -1) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@torch.no_grad()
def read_prefix(backbone: Backbone) -> Prefix:
    """Run the LLM over the text that its prompt format puts before the image of a sample with an answer."""
    from transformers import DynamicCache

    ids = backbone.tokenized("?", "?").before
    cache = DynamicCache()
    if ids:
        inputs = backbone.splice([[torch.tensor(ids, dtype=torch.long)]])
        _base(backbone)(**inputs, past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    return Prefix(len(ids), tuple((layer.keys, layer.values) for layer in layers))


def hidden_behind(backbone: Backbone, prefix: Prefix, inputs: dict[str, Tensor]) -> Tensor:
    """Last hidden states `[B, T - P, h]` behind the prefix: `Backbone.hidden_states`' but for rounding.

    Args:
        backbone: the backbone.
        prefix: from `read_prefix`, under the same autocast.
        inputs: of B samples, padded on the right; each begins with the prefix's P tokens. `attention_mask` is
            bool `[B, T]`, or `[B, 1, T, T]` where samples hold several dialogues (bool, or added to scores).
    """
    mask, start = inputs["attention_mask"], prefix.length
    output = _base(backbone)(
        inputs_embeds=inputs["inputs_embeds"][:, start:],
        attention_mask=mask if mask.ndim == 2 else mask[:, :, start:],
        position_ids=inputs["position_ids"][:, start:],
        past_key_values=Cache(layers=[_Fixed(*layer) for layer in prefix.layers]) if start else None,
        use_cache=False,
    )
    return output.last_hidden_state


def _base(backbone: Backbone) -> Any:
    return getattr(backbone.llm, backbone.llm.base_model_prefix)  # type: ignore[arg-type]
