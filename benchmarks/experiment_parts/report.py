"""From the records to tables in Markdown and pictures. No number here that is not in a JSON file."""

import statistics
from pathlib import Path

from modeling_svitt_ego.training.run_summary import draw_curves

from .inference import trained_settings
from .plan import FRAMES, PRUNERS, TITLES, TRAINED, settings_of
from .records import Records

HEADER = """<!-- Written by `python benchmarks/experiments.py --report` from the JSON files here: do not edit. -->
# Experiments

Mean ± standard deviation over the seeds; in square brackets, the mean over seeds of the difference to the first row
(same seed: same initial weights and same clips) with its standard deviation. EgoMCQ in per cent, chance 20. Numbers
are of the data that is named; none is a result on Ego4D unless the data says so.
"""


def write_report(records: Records) -> Path:
    """`README.md` and the pictures, in the records' folder."""
    parts = [HEADER]
    for number, title in TITLES.items():
        content = records.content[number]
        if not content["runs"]:
            continue
        content = {**content, "runs": in_order_of_the_plan(number, content["runs"])}
        parts.append(f"## {number}. {title}\n")
        parts.append(describe(content))
        parts.append(accuracy_table(content) if number in TRAINED else "")
        if "costs" in content:
            parts.append(cost_table(content["costs"]["result"]))
        if number == "4":
            parts.append(inference_table(content))
        for picture in draw(number, content, records.folder):
            parts.append(f"![{picture.stem}]({picture.name})\n")
    path = records.folder / "README.md"
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return path


def in_order_of_the_plan(number: str, runs: list[dict]) -> list[dict]:
    """With the setting that the others are compared with first: runs finish, and are recorded, in any order."""
    scale = runs[0]["budget"]["scale"]
    settings = settings_of(number, scale) if number in TRAINED else trained_settings(scale)
    place = {setting.name: i for i, setting in enumerate(settings)}
    return sorted(runs, key=lambda run: (place.get(run["setting"], len(place)), run["seed"]))


def by_setting(runs: list[dict]) -> dict[str, dict[int, dict]]:
    """Results by setting (in the order of the runs) and seed."""
    grouped: dict[str, dict[int, dict]] = {}
    for run in runs:
        grouped.setdefault(run["setting"], {})[run["seed"]] = run["result"]
    return grouped


def spread(values: list[float], digits: int = 1, sign: str = "") -> str:
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else f"{mean} (one seed)"


def describe(content: dict) -> str:
    """Data, budget, seeds and origin; all kinds that occur."""
    runs = content["runs"]
    lines = []
    for budget, data in {(str(sorted(run["budget"].items())), run["data"]): 0 for run in runs}:
        chosen = [r for r in runs if (str(sorted(r["budget"].items())), r["data"]) == (budget, data)]
        plan, some = chosen[0]["budget"], chosen[0]
        seeds = sorted({run["seed"] for run in chosen})
        where = some["machine"]["device"] or f"{some['machine']['arch']} CPU"
        others = len({run["command"] for run in chosen}) - 1
        also = f" and {others} more of its kind, each with its runs in the JSON file" if others else ""
        lines.append(
            f"{data}; the {plan['scale']} model, {plan['num_frames']} frames, {plan['steps']} steps of "
            f"{plan['batch_size']} clips, seeds {', '.join(map(str, seeds))}; {where}, {some['date']}, "
            f"`{some['command']}`{also}."
        )
    if len(lines) > 1:
        lines.insert(0, "**These runs differ in budget or data and should not be compared:**")
    return "\n".join(lines) + "\n"


def accuracy_table(content: dict) -> str:
    grouped = by_setting(content["runs"])
    fusion = any("inter_by_matching" in r for seeds in grouped.values() for r in seeds.values())
    columns = ["inter", "intra", "intra_frames_shuffled"] + (
        ["inter_by_matching", "intra_by_matching"] if fusion else []
    )
    names = [name.replace("_", " ").replace("frames shuffled", "(frames shuffled)") for name in columns]
    # Other processes change the wall clock, a device is not seen by the CPU's.
    on_device = content["runs"][0]["machine"]["device"] is not None
    clock = "wall" if on_device else "CPU"
    more = " | peak memory of the device, MB |" if on_device else " |"
    lines = [
        f"| setting | {' | '.join(names)} | positives per clip | {clock} s per step, in all{more}",
        "|---" * (len(columns) + 3 + on_device) + "|",
    ]
    first = next(iter(grouped.values()))
    all_seeds = {seed for seeds in grouped.values() for seed in seeds}
    for name, seeds in grouped.items():
        cells = []
        for column in columns:
            cell = spread([result[column] for result in seeds.values()])
            shared = sorted(seeds.keys() & first.keys())
            if seeds is not first and shared and column in ("inter", "intra"):
                differences = [seeds[s][column] - first[s][column] for s in shared]
                cell += f" [{spread(differences, sign='+').replace(' (one seed)', '')}]"
            cells.append(cell)
        cells.append(spread([result["positives_per_clip"] for result in seeds.values()]))
        cells.append(spread([result[f"{clock.lower()}_seconds_per_step"] for result in seeds.values()], 3))
        if on_device:
            cells.append(spread([result["max_memory_allocated"] / 1e6 for result in seeds.values()], 0))
        # The text above names the seeds of all runs together.
        fewer = f" ({len(seeds)} seeds)" if len(seeds) < len(all_seeds) else ""
        lines.append(f"| {name}{fewer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost_table(rows: list[dict]) -> str:
    some = rows[0]
    lines = [
        f"A training step (forward and backward) of {some['batch_size']} clips, medians of {len(some['rounds'])} "
        "rounds; in brackets the ratio to the first setting at the same number of frames:\n",
        f"| setting | frames | GFLOP | saved for backward, MB | peak memory, MB | {some['unit_of_time']} |",
        "|---|---|---|---|---|---|",
    ]
    firsts = {}
    for row in rows:
        first = firsts.setdefault(row["num_frames"], row)
        cells = [
            f"{row[key] / unit:.{digits}f} ({row[key] / first[key]:.2f})"
            for key, unit, digits in (
                ("flops", 1e9, 1),
                ("saved_bytes", 1e6, 1),
                ("peak_bytes", 1e6, 1),
                ("seconds", 1, 4),
            )
        ]
        lines.append(f"| {row['setting']} | {row['num_frames']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def inference_table(content: dict) -> str:
    latency = content["latency"]["result"]
    grouped = by_setting(content["runs"])
    models = "; ".join(f"model {i}: trained {name}" for i, name in enumerate(grouped, start=1))
    lines = [
        f"Latency: {latency['unit']}, {latency['clips_at_once']} clips at once. In the pictures, {models}.\n",
        f"| evaluated with | latency | {' | '.join(f'{name}: inter | intra' for name in grouped)} |",
        "|---" * (2 + 2 * len(grouped)) + "|",
    ]
    for setting, milliseconds in latency["median"].items():
        cells = [
            spread([result[setting][kind] for result in seeds.values()])
            for seeds in grouped.values()
            for kind in ("inter", "intra")
        ]
        lines.append(f"| {setting} | {milliseconds:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def accuracy_against_costs(number: str, grouped: dict[str, dict[int, dict]], costs: dict[str, dict]) -> dict:
    """Pictures of inter and intra against what a step keeps for the backward pass, and against its time."""
    pictures = {}
    unit_of_time = next(iter(costs.values()))["unit_of_time"]
    for key, unit, label in (("saved_bytes", 1e6, "saved for backward, MB"), ("seconds", 1, unit_of_time)):
        for kind in ("inter", "intra"):
            curves: dict[str, list] = {}
            for name in filter(costs.__contains__, grouped):
                point = costs[name][key] / unit, statistics.mean(result[kind] for result in grouped[name].values())
                for curve in curves_through(number, name, first=next(iter(grouped))):
                    curves.setdefault(curve, []).append(point)
            curves = {curve: sorted(points) for curve, points in curves.items()}
            pictures[f"experiment_{number}_{kind}_{key}"] = curves, label
    return pictures


def curves_through(number: str, name: str, first: str) -> list[str]:
    """The curves on which a setting is a point: of what it varies, and `first` of all."""
    if number in FRAMES:
        return [name.replace(", nodes 0.7", "")]  # each pattern with and without nodes; those kept by motion apart
    if number == "6":
        choices = ["by the attention of [CLS]", *PRUNERS]
        return choices if name == first else [name.split(", ", 1)[1]]
    letters = ["q_m"] if number == "3m" else ["K_r", "G", "q_v"]
    return letters if name == first else [name.split(" = ")[0]]


def draw(number: str, content: dict, folder: Path) -> list[Path]:
    """The experiment's pictures: means over seeds."""
    pictures = {}
    grouped = by_setting(content["runs"])
    if number == "4":
        milliseconds = content["latency"]["result"]["median"]
        patterns: dict[str, list[str]] = {}
        for name in milliseconds:
            patterns.setdefault(name.split(" edges, ")[0], []).append(name)
        # One picture for each trained model and kind of question, one curve for each edge pattern at inference.
        for number_of, (_, seeds) in enumerate(grouped.items(), start=1):
            for kind in ("inter", "intra"):
                pictures[f"experiment_4_model_{number_of}_{kind}"] = (
                    {
                        f"{pattern} edges": [
                            (milliseconds[name], statistics.mean(result[name][kind] for result in seeds.values()))
                            for name in sorted(names, key=milliseconds.get)
                        ]
                        for pattern, names in patterns.items()
                    },
                    content["latency"]["result"]["unit"],
                )
    if "costs" in content:
        rows = content["costs"]["result"]
        frames = sorted({row["num_frames"] for row in rows})
        if len(frames) > 1:
            for key, label in (("seconds", "time"), ("saved_bytes", "saved")):
                at = {(row["setting"], row["num_frames"]): row[key] for row in rows}
                first = rows[0]["setting"]
                curves = {
                    name: [(count, at[name, count] / at[first, count]) for count in frames]
                    for name in dict.fromkeys(row["setting"] for row in rows)
                }
                pictures[f"experiment_{number}_{label}"] = (curves, f"frames per clip ({label} / {first})")
        elif number in ("3", "3m", "6", *FRAMES):
            pictures |= accuracy_against_costs(number, grouped, {row["setting"]: row for row in rows})
    paths = []
    for name, (curves, across) in pictures.items():
        path = folder / f"{name}.png"
        draw_curves(curves, across=across).save(path)
        paths.append(path)
    return paths
