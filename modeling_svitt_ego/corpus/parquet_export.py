"""A prepared table as a folder of Parquet files that plain `load_dataset(folder)` reads, here or on the Hub."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path

import datasets
from huggingface_hub import DatasetCard, DatasetCardData

from ..files.arrow_cache import REPORT_NAME, rejected_lines, write_report

SHARD_BYTES = 64 << 20  # of Arrow; about 16 MB of Parquet, so that EgoClip streams in ten parts


def export_parquet(
    dataset: datasets.Dataset,
    folder: str | os.PathLike,
    config_name: str = "default",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write `dataset` below `folder` and name it in the README's YAML.

    Several tables may share a folder under different `config_name`s, and several splits one config. What an earlier
    call wrote for the same config and split is replaced; a reader never sees half of a table, because the files are
    written aside first.

    Args:
        dataset (`datasets.Dataset`): From one of the loaders.
        folder (`str`): Created if needed. Uploading it gives a repo for `load_dataset("user/name", config_name)`.
        config_name (`str`): Name of the table, such as `"egomcq"`.
        shard_bytes (`int`): Size of a shard, counted in Arrow.

    Returns:
        `Path`: The folder.
    """
    if not re.fullmatch(r"\w+(-\w+)*", config_name, re.ASCII):
        raise ValueError(f"config_name ({config_name!r}) must be letters, digits, _ and -.")
    split = str(dataset.split or "train")
    target = Path(folder) / config_name
    aside = Path(folder) / f".{config_name}-{split}.incomplete"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    num_shards = max(1, min(math.ceil(dataset.data.nbytes / shard_bytes), len(dataset)))
    for number in datasets.utils.tqdm(range(num_shards), desc=f"Writing {config_name}/{split}", unit="shard"):
        part = dataset.shard(num_shards, number, contiguous=True)
        part.to_parquet(aside / f"{split}-{number:05d}-of-{num_shards:05d}.parquet")
    if rejected := rejected_lines(dataset):  # by file name alone: where it lay is nobody's business on the Hub
        rejected = [line._replace(file=os.path.basename(line.file)) for line in rejected]
        write_report(aside / f"{split}-{REPORT_NAME}", rejected)

    target.mkdir(exist_ok=True)
    for old in target.glob(f"{split}-*"):
        old.unlink()
    for new in sorted(aside.iterdir()):
        new.replace(target / new.name)
    aside.rmdir()
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
    card.save(path)
