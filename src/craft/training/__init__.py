"""The training loop, its settings, checkpoints and run folder; `craft.lessons` says what is learned."""
