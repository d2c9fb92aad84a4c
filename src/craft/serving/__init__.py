"""One LLM behind many adapted encoders: towers by hash, a worker that batches, an HTTP front."""
