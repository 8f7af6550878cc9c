"""`svitt-ego build-egoclip` at full size: a narration.json of 3,847,723 sentences, seconds and peak memory.

    python benchmarks/egoclip_building_scale.py --output benchmarks/egoclip_building_scale.json

About a third of the sentences are different from each other. The files (about 1.5 GB) go to a temporary folder and are
deleted.
"""

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from egoclip_scale import NUM_ROWS, NUM_VIDEOS, in_new_process, peak_mb, provenance


def write_narrations(folder: Path, num_sentences: int, seed: int = 0) -> dict:
    """narration.json, ego4d.json and both taxonomies, as Ego4D has them; the words are made of syllables."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprtv" for b in "aeiou"]
    words = list(dict.fromkeys("".join(rng.choice(syllables, 3)) for _ in range(8000)))
    groups = {"verbs": [words[i * 6 : i * 6 + 6] for i in range(118)]}
    groups["nouns"] = [words[1000 + i * 8 : 1008 + i * 8] for i in range(582)]
    for name, members in groups.items():
        lines = [f'{group[0]},"{group}"' for group in members]
        (folder / f"{name}.csv").write_text("\n".join(["label,group", *lines]) + "\n")
    # Few words are frequent and most are rare, as in English.
    verbs, nouns = sum(groups["verbs"], []), sum(groups["nouns"], [])
    verb_of, noun_of = ((rng.zipf(1.3, num_sentences * n) - 1).reshape(-1, n) for n in (1, 2))
    times = rng.uniform(0, 1, num_sentences)
    per_video = np.bincount(rng.integers(NUM_VIDEOS, size=num_sentences), minlength=NUM_VIDEOS)
    durations, distinct, place = [], set(), 0
    with open(folder / "narration.json", "w", encoding="utf-8") as file:
        file.write('{"videos": {')
        for number, count in enumerate(per_video.tolist()):
            uid, seconds = rng.bytes(16).hex(), 1.35 * count + 10  # two annotators, 2.7 s between sentences
            durations.append({"video_uid": uid, "duration_sec": seconds})
            passes = {"narration_pass_1": [], "narration_pass_2": []}
            for i in range(place, place + count):
                verb, first, second = verb_of[i, 0] % len(verbs), *(noun_of[i] % len(nouns))
                text = f"#C C {verbs[verb]}s the {nouns[first]} with the {nouns[second]}"
                text = text if i % 9 else f"#O A man X {verbs[verb]}s {nouns[first]} and walks #unsure"
                distinct.add(hash(text))
                moment = round(seconds * times[i], 7)
                entry = {"timestamp_sec": moment, "timestamp_frame": int(30 * moment)}
                entry |= {"_unmapped_timestamp_sec": moment, "narration_text": text}
                entry |= {"annotation_uid": f"{uid}-{i % 2:03}"}
                passes[f"narration_pass_{1 + i % 2}"].append(entry)
            place += count
            video = {"status": "complete"}
            video |= {name: {"narrations": items, "summaries": []} for name, items in passes.items()}
            file.write(("" if number == 0 else ", ") + f"{json.dumps(uid)}: {json.dumps(video)}")
        file.write("}}\n")
    (folder / "ego4d.json").write_text(json.dumps({"videos": durations}))
    return {"sentences": num_sentences, "videos": NUM_VIDEOS, "distinct_texts": len(distinct)}


def measure_build(folder: str) -> dict:
    from modeling_svitt_ego.cli import main as command

    folder = Path(folder)
    idle = peak_mb()
    arguments = ["build-egoclip", folder / "narration.json", folder / "out.csv", "--durations", folder / "ego4d.json"]
    arguments += ["--verb-taxonomy", folder / "verbs.csv", "--noun-taxonomy", folder / "nouns.csv"]
    start, cpu = time.perf_counter(), time.process_time()
    if command([str(argument) for argument in [*arguments, "--json", folder / "report.json"]]):
        raise SystemExit("build-egoclip failed")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    report = json.loads((folder / "report.json").read_text())
    return {
        **{name: report[name] for name in ("read", "kept", "passes", "no_verb", "no_noun", "mean_seconds", "dropped")},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_rss_mb": round(peak_mb()),
        "rss_mb_after_import": round(idle),
        "csv_mb": round((folder / "out.csv").stat().st_size / 1e6),
        "csv_sha256": hashlib.sha256((folder / "out.csv").read_bytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=NUM_ROWS)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--measure", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure_build(args.measure[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_narrations(Path(folder), args.sentences)
        result = {"what": "svitt-ego build-egoclip on generated narrations", **provenance(), **corpus}
        result["json_mb"] = round((Path(folder) / "narration.json").stat().st_size / 1e6)
        result["build"] = in_new_process("build", folder)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
