"""Everything on disk: one file for each layout. Importing it teaches `LVLM.with_encoder` to read folders."""

from craft.formats import encoder

__all__ = ["encoder"]
