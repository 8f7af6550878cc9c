"""Checkpoints: released ones, warm starts from image and text encoders, loading, identity, LoRA, tokenizers."""
