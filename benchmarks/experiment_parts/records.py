"""Results on disk: one JSON per experiment with every run's raw figures and what made them. Finished runs are kept."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch

from modeling_svitt_ego.files.writing import write_text
from modeling_svitt_ego.weights.provenance import package_commit

from .plan import TITLES

VERSIONS = ("torch", "torchvision", "transformers", "accelerate", "datasets", "numpy")
RECIPE = ("setting", "seed", "fields", "arguments", "fusion", "budget", "data", "more")


class Records:
    """
    `experiment_<number>.json` files in a folder.

    A run is known by its recipe (setting, seed, fields, arguments, budget, data), so a run that two experiments share
    is trained once, and one whose recipe has changed is run again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.content = {number: self._read(number) for number in TITLES}

    def path(self, number: str) -> Path:
        return self.folder / f"experiment_{number}.json"

    def _read(self, number: str) -> dict:
        path = self.path(number)
        if not path.is_file():
            return {"experiment": number, "title": TITLES[number], "runs": []}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error

    def find(self, recipe: dict) -> dict | None:
        """A finished run of the recipe, whatever its name and in whichever experiment."""
        recipe = json.loads(json.dumps(recipe))
        for content in self.content.values():
            for run in content["runs"]:
                if all(run.get(key, {}) == recipe.get(key, {}) for key in RECIPE if key != "setting"):
                    return run
        return None

    def has(self, number: str, recipe: dict) -> bool:
        recipe = json.loads(json.dumps(recipe))
        runs = self.content[number]["runs"]
        return any(all(run.get(key, {}) == recipe.get(key, {}) for key in RECIPE) for run in runs)

    def add(self, number: str, recipe: dict, result: dict, made_by: dict | None = None) -> None:
        run = {**recipe, **(origin() if made_by is None else made_by), "result": result}
        self.content[number]["runs"].append(json.loads(json.dumps(run)))
        self.write(number)

    def set(self, number: str, name: str, value) -> None:
        """What belongs to the experiment as a whole: costs, latencies."""
        self.content[number][name] = {**origin(), "result": value}
        self.write(number)

    def write(self, number: str) -> None:
        write_text(self.path(number), json.dumps(self.content[number], indent=1, allow_nan=False) + "\n")


ORIGIN = ("command", "commit", "date", "machine", "versions")


def origin() -> dict:
    """Command, commit, date, machine (no host name) and versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": package_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "system": platform.system(),
            "arch": platform.machine(),
            "cores": os.cpu_count(),
            "device": device,
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS},
    }
