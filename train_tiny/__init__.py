"""The recipes that trained the shipped craft-tiny family; each module's `main` is one command."""
