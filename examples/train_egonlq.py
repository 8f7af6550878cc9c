"""EgoNLQ end to end: features, a grounding head trained with the stock Trainer, prediction file, recall, baselines.

    svitt-ego demo --output svitt-ego-demo --training-videos
    python examples/train_egonlq.py --model svitt-ego-demo/model --output runs/egonlq \\
        --train-json svitt-ego-demo/world/train/nlq.json --train-videos svitt-ego-demo/world/train/videos \\
        --train-narrations svitt-ego-demo/world/train/egoclip.csv \\
        --val-json svitt-ego-demo/world/test/nlq.json --val-videos svitt-ego-demo/world/test/videos

With Ego4D: nlq_train.json, nlq_val.json and egoclip.csv, and the folder of the videos for both.
"""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from modeling_svitt_ego import __version__
from modeling_svitt_ego.commands.arguments import (
    CommandParser,
    non_negative_int,
    positive_float,
    positive_int,
    probability,
)
from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.corpus.egonlq_building import build_egonlq
from modeling_svitt_ego.corpus.narrations_as_queries import write_narrations_as_queries
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.egonlq import read_queries
from modeling_svitt_ego.data.taxonomy import read_taxonomy
from modeling_svitt_ego.evaluation.egonlq_metrics import egonlq_hits, egonlq_intervals, egonlq_recall
from modeling_svitt_ego.features.egonlq_features import EgoNLQFeatures, collate_egonlq
from modeling_svitt_ego.features.extraction import extract
from modeling_svitt_ego.features.grounding import (
    config_for,
    constant_spans,
    ground,
    sliding_window_spans,
    write_predictions,
)
from modeling_svitt_ego.features.windows import NLQ_WINDOW_SECONDS, WindowSettings
from modeling_svitt_ego.model.temporal_grounding_svitt_ego import SViTTEgoForTemporalGrounding
from modeling_svitt_ego.weights.loading import load_dual_encoder

SHOWN = ("r1_iou0.3", "r1_iou0.5", "r5_iou0.3", "r5_iou0.5", "mean_r1")
WINDOW_CELLS = (1, 2, 3, 4, 6, 8, 12, 16)  # what the sliding window may be


def main(argv: list[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of the encoder")
    parser.add_argument("--train-json", required=True, help="nlq_train.json")
    parser.add_argument("--train-videos", required=True, help="folder of its videos, in any known layout")
    parser.add_argument("--train-narrations", help="egoclip.csv: its narrations are queries to train on, too (NaQ)")
    parser.add_argument("--train-taxonomies", nargs=2, metavar=("VERBS", "NOUNS"),
                        help="csv files: the narrations' tags are also asked as questions, in the templates of "
                        "data/egonlq_building.py")  # fmt: skip
    parser.add_argument("--val-json", required=True, help="nlq_val.json")
    parser.add_argument("--val-videos", required=True, help="folder of its videos")
    parser.add_argument("--output", required=True, type=Path, help="features, head, predictions.json, results.json")
    parser.add_argument(
        "--windows-per-second", type=positive_float, default=1.875, help="features per second of video"
    )
    parser.add_argument(
        "--window-seconds",
        type=positive_float,
        default=NLQ_WINDOW_SECONDS,
        help="what the encoder sees for each feature; the default is that of `svitt-ego extract --nlq`",
    )
    parser.add_argument("--hidden-size", type=positive_int, default=128, help="of the head")
    parser.add_argument("--dropout", type=probability, default=0.2, help="of the head")
    parser.add_argument("--epochs", type=positive_float, default=30, help="over the queries to train on")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="queries per step")
    parser.add_argument("--learning-rate", type=positive_float, default=1e-3, help="the peak")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the head and of the order of the queries")
    arguments = parser.parse_args(argv)
    output = arguments.output

    # 1. Queries to train on: those of the file and, if given, every narration, as it is and as a question. Few
    #    questions are too few: the head would have to learn what is seen from them, too.
    if arguments.train_taxonomies and not arguments.train_narrations:
        parser.error("--train-taxonomies needs --train-narrations")
    for path in (arguments.train_json, arguments.train_videos, arguments.val_json, arguments.val_videos):
        if not Path(path).exists():
            parser.error(f"there is no {path!r}")
    encoder, processor = load_dual_encoder(arguments.model)
    train_json = [arguments.train_json]
    if arguments.train_narrations:
        table = load_egoclip(arguments.train_narrations)
        train_json.append(str(write_narrations_as_queries(table, output / "naq_train.json")))
        if arguments.train_taxonomies:
            verbs, nouns = map(read_taxonomy, arguments.train_taxonomies)
            asked = output / "questions_train.json"
            content = build_egonlq(list(table), verbs, nouns, split="train", unique=False)
            asked.write_text(json.dumps(content) + "\n", encoding="utf-8")
            train_json.append(str(asked))

    # 2. Features of the videos and of the queries. What an earlier run has finished is kept.
    settings = WindowSettings(arguments.windows_per_second, arguments.window_seconds)
    extract(encoder, processor, arguments.train_videos, output / "features-train", settings, nlq=train_json)
    extract(encoder, processor, arguments.val_videos, output / "features-val", settings, nlq=[arguments.val_json])
    train = EgoNLQFeatures.from_json(train_json, output / "features-train", keep_in_memory=True)
    questions = EgoNLQFeatures.from_json(arguments.train_json, output / "features-train")
    val = EgoNLQFeatures.from_json(arguments.val_json, output / "features-val")

    # 3. A grounding head for features of this kind, and the stock Trainer.
    set_seed(arguments.seed)
    config = config_for(train, hidden_size=arguments.hidden_size, hidden_dropout_prob=arguments.dropout)
    head = SViTTEgoForTemporalGrounding(config)
    training_arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=arguments.seed,
    )
    trainer = Trainer(head, training_arguments, data_collator=collate_egonlq, train_dataset=train)
    trainer.train()
    trainer.save_model(str(output / "head"))

    # 4. Predictions, the challenge's file, and what can be had without a head. What the baselines can choose (place
    #    and length of the constant spans, cells of the window) is chosen on the training questions.
    spans = {"grounding_head": ground(head, val)}
    write_predictions(output / "predictions.json", val.rows, spans["grounding_head"])
    spans["best_constant"] = constant_spans(questions, val, hits)
    answers = [(row["answer_start"], row["answer_end"]) for row in questions.rows]
    recalls = {n: egonlq_recall(sliding_window_spans(questions, n), answers) for n in WINDOW_CELLS}
    width = max(recalls, key=lambda n: recalls[n]["mean_r1"])
    spans["sliding_window_cosine"] = sliding_window_spans(val, width)

    # 5. Recall over all queries of the file: one without a prediction is a miss.
    rows = list(read_queries(arguments.val_json))
    results = {name: recall(val, found, rows) for name, found in spans.items()}
    print(
        f"{len(rows)} queries of {len({row['video_uid'] for row in rows})} videos, {len(train)} to train on; per cent"
    )
    print(f"{'':24}" + "".join(f"{name:>12}" for name in SHOWN))
    for name, metrics in results.items():
        print(f"{name:24}" + "".join(f"{metrics[key]:12.1f}" for key in SHOWN))
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "package_version": __version__,
        "encoder_fingerprint": config.encoder_fingerprint,
        "settings": {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
        },
        "num_train_queries": len(train),
        "num_train_questions": len(questions),
        "num_parameters": sum(p.numel() for p in head.parameters()),
        "sliding_window_cells": width,
        "results": results,
    }
    (output / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def hits(candidates: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Which queries one candidate span each hits, at the looser of the challenge's thresholds."""
    return egonlq_hits(candidates[:, None], answers)["r1_iou0.3"]


def recall(data: EgoNLQFeatures, found: list, rows: list[dict]) -> dict:
    """Recall of spans `found` for the queries of `data`, over all queries `rows` of the annotation file."""
    by_query = {(row["annotation_uid"], row["query_idx"]): span for row, span in zip(data.rows, found)}
    predictions = [by_query.get((row["annotation_uid"], row["query_idx"])) for row in rows]
    answers = [(row["answer_start"], row["answer_end"]) for row in rows]
    metrics = egonlq_recall(predictions, answers)
    return metrics | {"intervals_95": egonlq_intervals(predictions, answers, [row["video_uid"] for row in rows])}


if __name__ == "__main__":
    run_script(main, stopped="features of finished videos are kept; the same command continues")
