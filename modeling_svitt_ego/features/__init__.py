"""Applications of a trained encoder to whole videos: window features, search, temporal grounding."""
