"""Train action classifiers on a pretrained SViTT-Ego: linear or attentive probe, LoRA by PEFT, or all weights.

    python examples/finetune_classification.py --model FOLDER --method linear \
        --train EPIC_100_train.csv --test EPIC_100_validation.csv --videos EPIC-KITCHENS --layout epic

The files say the task: EPIC-KITCHENS-100 trains a head for verbs and one for nouns at once and scores the action by
the pair, with `--joint-action` also by a third head for the actions of the training set; EGTEA Gaze+
(`train_split1.txt`, layout egtea) has three heads; Charades-Ego has several labels for a video and trains on its
annotated moments. `svitt-ego evaluate video-classification OUTPUT/model` scores the result again,
with more views if asked for.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoProcessor, set_seed

from modeling_svitt_ego import SViTTEgoForVideoClassification
from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.data.charades_ego import load_charades_ego
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.labelled_clips import with_actions
from modeling_svitt_ego.data.labelled_files import load_labelled_clips
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.evaluation.video_classification import HeadEvaluator
from modeling_svitt_ego.training.finetuning import FineTuner, FineTuningRecipe, LabelledExamples
from modeling_svitt_ego.training.probes import class_labels, classifier_fields, frozen_features, train_probe
from modeling_svitt_ego.weights.lora import add_lora

METHODS = ("linear", "attentive", "lora", "full")
LEARNING_RATES = {"linear": 1e-2, "attentive": 1e-3, "lora": 1e-3, "full": 1e-4}


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a pretrained model")
    parser.add_argument("--train", required=True, help="annotations of the training clips")
    parser.add_argument("--test", required=True, help="annotations of the test clips")
    parser.add_argument("--videos", required=True, help="folder of the videos of both")
    parser.add_argument("--layout", help="of the videos: epic, egtea, …; found by looking otherwise")
    parser.add_argument("--method", default="linear", choices=METHODS)
    parser.add_argument("--output", default="runs/finetune_classification", help="folder for model and results.json")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help=f"by default {LEARNING_RATES}")
    parser.add_argument("--rank", type=int, default=8, help="rank of LoRA's updates")
    parser.add_argument("--joint-action", action="store_true", help="EPIC-KITCHENS-100: also a head for the actions")
    parser.add_argument("--mixup-alpha", type=float, default=0.0, help="lora, full: mixes pairs of clips; 0: off")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    method, output = arguments.method, Path(arguments.output)
    learning_rate = arguments.learning_rate or LEARNING_RATES[method]
    set_seed(arguments.seed)

    # 1. Clips and classes. A video of Charades-Ego is trained by its moments and tested as a whole.
    train, test = load_labelled_clips(arguments.train), load_labelled_clips(arguments.test)
    if train.benchmark == "charades-ego":
        train = load_charades_ego(arguments.train, by="moment")
    pairs = None
    if arguments.joint_action:
        if train.benchmark != "ek100-cls":
            raise ValueError(f"--joint-action is for EPIC-KITCHENS-100; {arguments.train} is of {train.benchmark}.")
        train, pairs = with_actions(train)
    if arguments.mixup_alpha and method in ("linear", "attentive"):
        raise ValueError("--mixup-alpha mixes clips, which a probe on frozen features does not see again.")

    # 2. The classifier, new on top of the pretrained tower.
    fields = classifier_fields(train, test) | {"action_pairs": pairs}
    if method == "attentive":
        fields["classifier_pooling"] = "attention"
    model = SViTTEgoForVideoClassification.from_pretrained(arguments.model, **fields)
    processor = AutoProcessor.from_pretrained(arguments.model)
    num_frames = model.config.vision_config.num_frames
    store = VideoStore(arguments.videos, arguments.layout)

    # 3. Training: probes on features computed once, the others by the library's Trainer.
    if method in ("linear", "attentive"):
        clips = EgoClipDataset(train.table, store, num_frames=num_frames, sampling="middle")
        examples = LabelledExamples(clips, class_labels(train), processor)
        features = frozen_features(model, examples, num_workers=arguments.num_workers)
        train_probe(model, features, arguments.epochs, arguments.batch_size, learning_rate, seed=arguments.seed)
    else:
        clips = EgoClipDataset(train.table, store, num_frames=num_frames, seed=arguments.seed)
        tuned = add_lora(model, "vision", rank=arguments.rank, trained=["classifier"]) if method == "lora" else model
        settings = FineTuningRecipe(
            output_dir=str(output / "checkpoints"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=learning_rate,
            dataloader_num_workers=arguments.num_workers,
            save_strategy="no",
            report_to="none",
            seed=arguments.seed,
        )
        examples = LabelledExamples(clips, class_labels(train), processor, augment=True)
        mixup = {"mixup_alpha": arguments.mixup_alpha}
        FineTuner(tuned, settings, train_dataset=examples, processing_class=processor, **mixup).train()
        model = tuned.merge_and_unload() if method == "lora" else tuned

    # 4. The test set, and the model as `svitt-ego evaluate` takes it.
    task = "label" if "label" in test.classes else None
    workers = arguments.num_workers
    evaluator = HeadEvaluator(
        test, task, arguments.videos, processor, num_frames, layout=arguments.layout, num_workers=workers
    )
    report = evaluator(model)
    model.save_pretrained(output / "model")
    processor.save_pretrained(output / "model")
    results = {"method": method, "metrics": report.metrics, "num_train_clips": len(clips), "seed": arguments.seed}
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report.table())
    return results


if __name__ == "__main__":
    run_script(main)
