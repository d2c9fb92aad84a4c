"""Vision towers, visual tokenizer, projector, backbone and LVLM. Nothing here touches the disk."""
