"""The synthetic first-person world and the demo that trains on it."""
