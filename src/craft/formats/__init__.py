"""Everything on disk, one file per layout. Importing it lets `LVLM.with_encoder` read folders."""

from craft.formats import load

__all__ = ["load"]
