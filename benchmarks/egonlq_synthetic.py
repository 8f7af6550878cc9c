"""EgoNLQ on the synthetic world: does the grounding head beat the best constant and the sliding-window cosine by far?

    svitt-ego demo --output svitt-ego-demo
    python benchmarks/egonlq_synthetic.py --model svitt-ego-demo/model --output runs/egonlq_synthetic

Renders a world of another seed, so that the encoder has seen neither the training nor the test videos, trains the head
on its questions and narrations (`examples/train_egonlq.py`), and writes recall and baselines with their intervals to
benchmarks/results/egonlq/synthetic.json. Minutes on a CPU; what is finished is kept. For another encoder give another
--output and the same --world.

The encoder was trained on narrations and has never read a question. A second cosine baseline is therefore given each
question as the narration it asks for ("where did i put the cup?" as "#C C puts down the cup"), from the annotation's
verb and noun; "what did i pick up after …?" names no object to look for and stays as it is.
"""

import argparse
import importlib.util
import platform
import shlex
import sys
from pathlib import Path

import torch

from modeling_svitt_ego.data.egonlq import read_queries
from modeling_svitt_ego.demo.synthetic_scene import VERBS
from modeling_svitt_ego.demo.synthetic_world import build_world
from modeling_svitt_ego.evaluation.egonlq_metrics import egonlq_recall
from modeling_svitt_ego.features.egonlq_features import EgoNLQFeatures
from modeling_svitt_ego.features.grounding import sliding_window_spans
from modeling_svitt_ego.features.windows import embed_texts
from modeling_svitt_ego.files.writing import write_json
from modeling_svitt_ego.weights.loading import load_dual_encoder
from modeling_svitt_ego.weights.provenance import package_commit

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the encoder: the demo's model folder")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--world", type=Path, help="folder of the rendered world; OUTPUT/world by default")
    parser.add_argument("--train-videos", type=int, default=120)
    parser.add_argument("--test-videos", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the world; the demo's has 0")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "egonlq" / "synthetic.json")
    arguments = parser.parse_args(argv)
    sizes = {"train": arguments.train_videos, "test": arguments.test_videos}
    world = build_world(arguments.world or arguments.output / "world", sizes, 60.0, arguments.seed)
    state = code_state()
    train, test = world["train"], world["test"]
    example, head = load_example(), arguments.output / "head"
    report = example.main(
        ["--model", arguments.model, "--output", str(head)]
        + ["--train-json", str(train.nlq), "--train-videos", str(train.videos)]
        + ["--train-narrations", str(train.egoclip)]
        + ["--train-taxonomies", str(train.verb_taxonomy), str(train.noun_taxonomy)]
        + ["--val-json", str(test.nlq), "--val-videos", str(test.videos)]
        + ["--hidden-size", "64", "--batch-size", "32", "--learning-rate", "3e-3", "--dropout", "0.1"]
        + ["--epochs", str(arguments.epochs)]
    )
    questions = EgoNLQFeatures.from_json(train.nlq, head / "features-train", keep_in_memory=True)
    val = EgoNLQFeatures.from_json(test.nlq, head / "features-val", keep_in_memory=True)
    encoder, processor = load_dual_encoder(arguments.model)
    found, width = cosine_of_statements(encoder, processor, questions, val, example.WINDOW_CELLS)
    metrics = example.recall(val, found, list(read_queries(str(test.nlq))))
    report["results"]["sliding_window_cosine_of_statements"] = metrics
    report["sliding_window_cells_of_statements"] = width
    print(f"{'cosine, as narrations':24}" + "".join(f"{metrics[key]:12.1f}" for key in example.SHOWN))
    report |= {
        **state,
        "command": shlex.join(["python", *sys.argv]),
        "world": {"sizes": sizes, "seconds_per_video": 60.0, "seed": arguments.seed},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.results, report)
    return report


def cosine_of_statements(encoder, processor, train: EgoNLQFeatures, val: EgoNLQFeatures, widths) -> tuple[list, int]:
    """Spans for `val` by the cosine with statements, and the window's cells, chosen on the training questions."""
    embeds = {}
    for data in (train, val):
        texts = embed_texts(encoder, processor, [statement(row) for row in data.rows])
        embeds[data] = [torch.from_numpy(text.features) for text in texts]
    answers = [(row["answer_start"], row["answer_end"]) for row in train.rows]

    def recall(width):
        spans = sliding_window_spans(train, width, text_embeds=embeds[train])
        return egonlq_recall(spans, answers)["mean_r1"]

    width = max(widths, key=recall)
    return sliding_window_spans(val, width, text_embeds=embeds[val]), width


def statement(row: dict) -> str:
    """The narration that a question asks for, where the question says which."""
    if row["template"] == "Objects: What X did I Y?":
        return row["query"]
    return "#C C " + VERBS[row["verb_x"]].phrases[0].format(f"the {row['slot_x']}")


def code_state() -> dict:
    """Before the run: the code that runs, not what was committed meanwhile."""
    return {"commit": package_commit(HERE.parent)}


def load_example():
    """examples/ is a folder of scripts, no package."""
    path = HERE.parent / "examples" / "train_egonlq.py"
    spec = importlib.util.spec_from_file_location("train_egonlq", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
