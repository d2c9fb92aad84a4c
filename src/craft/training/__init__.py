"""The training loop, its settings, checkpoints and run folder. `craft.lessons` defines what is learned."""
