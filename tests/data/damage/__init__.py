"""Kinds of damage to your own data: how each is made, and the facts that its message must contain."""

from data.damage import conversations, folders, pictures, rows, tables
from data.damage.making import DAMAGE, states

__all__ = ["DAMAGE", "conversations", "folders", "pictures", "rows", "states", "tables"]
