"""What SViTTEgoTrainer is made of: exact large batches, objectives, stages, optimizer, checkpoints, summaries."""
