"""Floor 0: shared types, errors, seeding, device and dtype, atomic files, settings, processes, progress."""
