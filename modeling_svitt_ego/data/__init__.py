"""Annotation files, video folders and clips. What is named here is imported when used: `datasets` takes a second."""

from importlib import import_module

_MODULES = {
    "ClipShardDataset": "clip_shards",
    "EgoClipDataset": "clips",
    "VideoStore": "layouts",
    "load_egoclip": "egoclip",
    "load_egomcq": "egomcq",
    "load_egonlq": "egonlq",
    "load_epic_kitchens": "epic_kitchens",
    "rejected_lines": "..files.arrow_cache",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    return getattr(import_module(module if module.startswith(".") else f".{module}", __name__), name)
