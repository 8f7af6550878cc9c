"""Makes modules unimportable, as on a machine where they are not installed.

In a test run, `SVITT_EGO_BLOCK=decord,triton pytest -p tests.helpers.block_modules tests` is Linux on arm64 or macOS,
where neither has a wheel. In a script: `block({"decord"})`.
"""

import importlib.abc
import importlib.metadata
import importlib.util
import os
import sys


class _Refuse(importlib.abc.MetaPathFinder):
    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def block(names: set[str]) -> None:
    """From now on, imports of `names` fail, and they look uninstalled to those who ask before importing."""
    sys.meta_path.insert(0, _Refuse(names))
    find_spec, version = importlib.util.find_spec, importlib.metadata.version

    def is_blocked(name: str) -> bool:
        return name.split(".")[0].replace("-", "_") in names

    def blocked_find_spec(name, package=None):
        return None if is_blocked(name) else find_spec(name, package)

    def blocked_version(name):
        if is_blocked(name):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    importlib.util.find_spec, importlib.metadata.version = blocked_find_spec, blocked_version
    for name in [name for name in sys.modules if is_blocked(name)]:
        del sys.modules[name]


if os.environ.get("SVITT_EGO_BLOCK"):
    block(set(os.environ["SVITT_EGO_BLOCK"].split(",")))
