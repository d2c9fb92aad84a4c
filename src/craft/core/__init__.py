"""Floor 0: errors, tokens, seeding, device and dtype, atomic files, settings, processes, text, progress."""
