"""Kinds of damage to data of one's own: how each is made, and the exact sentence that names it.

`{root}` stands for the folder that holds the data.
"""

from data.damage import conversations, folders, pictures, rows, tables
from data.damage.making import DAMAGE

__all__ = ["DAMAGE", "conversations", "folders", "pictures", "rows", "tables"]
