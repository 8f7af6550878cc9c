"""Metrics as pure functions, and one evaluator per benchmark."""
