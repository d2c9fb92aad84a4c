"""Justified answers before a judge (§4.3, §7). A newcomer opens `judge` first, then `cases`."""
