"""How long a search takes over many windows, on synthetic vectors of the base model's size.

    python benchmarks/search_scale.py --output benchmarks/results/search_scale.json

`VideoIndex.search` and faiss's exact index, on random vectors of unit length in videos of one hour (1.875 windows a
second, the default). The embedding of the query is left out: it is the text tower's, see benchmarks/export.py. Both
run in turn. `cpu_ms` is time of the processor, all threads together; `ms` is by the clock, and on a busy machine
larger.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import faiss
import numpy as np
from attention import machine, write_record

from modeling_svitt_ego.features.search import IndexedVideo, VideoIndex
from modeling_svitt_ego.features.source_videos import SourceVideo
from modeling_svitt_ego.features.windows import WINDOWS_PER_SECOND
from modeling_svitt_ego.hub.configs import hub_config

HOUR = round(3600 * WINDOWS_PER_SECOND)


class GivenQuery(VideoIndex):
    """An index whose query is embedded already."""

    def embed_query(self, query: str) -> np.ndarray:
        return self.query


def synthetic_index(num_windows: int, width: int, seed: int = 0) -> GivenQuery:
    rng = np.random.default_rng(seed)
    videos, cells = [], np.stack([np.arange(HOUR), np.arange(1, HOUR + 1)], axis=1) / WINDOWS_PER_SECOND
    for first in range(0, num_windows, HOUR):
        vectors = rng.standard_normal((min(HOUR, num_windows - first), width), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        name = f"hour-{first // HOUR}"
        videos.append(IndexedVideo(SourceVideo(name, ((0.0, Path(f"{name}.mp4")),)), cells[: len(vectors)], vectors))
    index = GivenQuery(None, None, videos, {})
    index.query = index.vectors[num_windows // 2] + 0.02 * rng.standard_normal(width, dtype=np.float32)
    index.query /= np.linalg.norm(index.query)
    return index


def measure(num_windows: int, width: int, rounds: int) -> list[dict]:
    index = synthetic_index(num_windows, width)
    flat = index.to_faiss()
    ways = {
        "VideoIndex.search, 5 moments": lambda: index.search("query", 5),
        "faiss.IndexFlatIP.search, 5 windows": lambda: flat.search(index.query[None], 5),
    }
    assert flat.search(index.query[None], 1)[1].item() == num_windows // 2
    assert index.search("query", 5)[0].video.uid == f"hour-{num_windows // 2 // HOUR}"
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            clock, cpu = time.perf_counter(), time.process_time()
            way()
            spent[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    rows = []
    for name, times in spent.items():
        clocks, cpus = zip(*times)
        row = {"windows": num_windows, "hours": round(num_windows / HOUR, 1), "width": width, "way": name}
        row |= {"ms": round(1e3 * statistics.median(clocks), 1), "smallest_ms": round(1e3 * min(clocks), 1)}
        rows.append(row | {"cpu_ms": round(1e3 * statistics.median(cpus), 1)})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    width = hub_config("svitt-ego-base").projection_dim
    versions = {"numpy": np.__version__, "faiss": faiss.__version__}
    result = {
        "command": "python benchmarks/search_scale.py " + " ".join(sys.argv[1:] if argv is None else argv),
        "machine": machine("cpu", "fp32", os.cpu_count()) | versions,
        "rounds": arguments.rounds,
        "rows": [row for size in arguments.windows for row in measure(size, width, arguments.rounds)],
    }
    write_record(arguments.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
