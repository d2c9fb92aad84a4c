"""What runs learn: objectives and batches for `craft.training.fit`."""
