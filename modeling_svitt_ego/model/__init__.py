"""Exactly what ships to the Hub: `save_pretrained` copies these files, flat, next to the weights.

Importing any of them first imports transformers, so that the Auto classes are registered (see `registration.py`).
"""

import transformers  # noqa: F401
