"""What a trained encoder computes over whole videos: window features, search, temporal grounding."""
