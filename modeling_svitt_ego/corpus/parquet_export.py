"""A prepared table as a folder of Parquet files that plain `load_dataset(folder)` reads, here or on the Hub."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import datasets
from huggingface_hub import DatasetCard, DatasetCardData

from ..files.arrow_cache import REPORT_NAME, rejected_lines, write_report
from ..files.folder_lock import locked
from ..files.writing import aside

SHARD_BYTES = 64 << 20  # of Arrow; about 16 MB of Parquet, so that EgoClip streams in ten parts


def export_parquet(
    dataset: datasets.Dataset,
    folder: str | os.PathLike,
    config_name: str = "default",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write `dataset` below `folder` and name it in the YAML of its README.

    Several tables may share a folder under different `config_name`s, and several splits one config. What an earlier
    call wrote for the same config and split is replaced; every file appears whole. `svitt-ego build-egoclip --parquet`
    calls this; for a table that exists:

    ```python
    export_parquet(load_egoclip("egoclip.csv"), "egoclip")  # then: hf upload USER/egoclip egoclip --repo-type dataset
    ```

    Args:
        dataset (`datasets.Dataset`): From one of the loaders.
        folder (`str`): Created if needed. Uploading it gives a repo for `load_dataset("user/name", config_name)`.
        config_name (`str`): Name of the table, such as `"egomcq"`.
        shard_bytes (`int`): Size of a shard, counted in Arrow.

    Returns:
        `Path`: The folder.

    Raises:
        FileExistsError: Another process is writing to the folder.
    """
    if not re.fullmatch(r"\w+(-\w+)*", config_name, re.ASCII):
        raise ValueError(f"config_name ({config_name!r}) must be letters, digits, _ and -.")
    split, target = str(dataset.split or "train"), Path(folder) / config_name
    target.mkdir(parents=True, exist_ok=True)
    with locked(Path(folder)):
        num_shards = max(1, min(math.ceil(dataset.data.nbytes / shard_bytes), len(dataset)))
        written = set()
        for number in datasets.utils.tqdm(range(num_shards), desc=f"Writing {config_name}/{split}", unit="shard"):
            path = target / f"{split}-{number:05d}-of-{num_shards:05d}.parquet"
            with aside(path) as part:
                dataset.shard(num_shards, number, contiguous=True).to_parquet(part)
            written.add(path)
        if rejected := rejected_lines(dataset):  # by file name alone: the folder may be published
            rejected = [line._replace(file=os.path.basename(line.file)) for line in rejected]
            written.add(target / f"{split}-{REPORT_NAME}")
            with aside(target / f"{split}-{REPORT_NAME}") as part:
                write_report(part, rejected)
        for old in set(target.glob(f"{split}-*")) - written:
            old.unlink()
        _name_in_readme(Path(folder) / "README.md", config_name, split, dataset.info.description)
    return Path(folder)


def _name_in_readme(path: Path, config_name: str, split: str, description: str) -> None:
    """Add or replace one split of one config in the YAML at the top of the README; the rest stays."""
    if path.is_file():
        card = DatasetCard.load(path)
    else:
        card = DatasetCard(f"---\n{DatasetCardData().to_yaml()}\n---\n\n{description}\n")
    configs = card.data.to_dict().get("configs", [])
    config = next((config for config in configs if config["config_name"] == config_name), None)
    if config is None:
        config = {"config_name": config_name, "data_files": []}
        configs.append(config)
    others = [files for files in config["data_files"] if files["split"] != split]
    config["data_files"] = [*others, {"split": split, "path": f"{config_name}/{split}-*.parquet"}]
    card.data.configs = configs
    with aside(path) as part:
        card.save(part)
