"""`craft serve`."""

from typing import Any

from craft.cli.flags import config_of, takes
from craft.cli.options import COMMON, Common
from craft.serving.settings import ServeConfig


@takes(ServeConfig)
def serve(model: str | None = None, *, flags: Any = None, common: Common = COMMON) -> None:
    """Serve an LLM behind adapted encoders over OpenAI's protocol, chosen by the model's name.

    MODEL asks behind the base tower, MODEL:NAME behind an encoder, and MODEL:auto behind the encoder whose
    domain an image belongs to.

    Args:
        model: a shipped model, a folder, or a hub id.
    """
    config: ServeConfig = config_of(ServeConfig, flags, common, model=model)
    from craft.recipes.serve import serve as run

    run(config)
