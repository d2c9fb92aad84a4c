"""Models: vision towers, visual tokenizer, projector, backbone, LVLM, and one file per on-disk format."""
