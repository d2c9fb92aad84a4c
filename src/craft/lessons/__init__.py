"""What is learned: the objectives and batches that `craft.training.fit` trains."""
