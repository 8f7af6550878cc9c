"""Fine-tune a pretrained SViTT-Ego on a downstream task three ways: linear probe, LoRA by PEFT, and all weights.

The task is action classification on the synthetic world of `svitt-ego demo`: which of its verbs does a clip show? The
training clips are those of the train split; the accuracy is that on the test split, whose scenes are unseen. All three
start from the same pretrained folder and use transformers' own Trainer. On two cores it takes minutes.

Every folder that it writes holds a processor too, so that `AutoProcessor`, `pipeline("video-classification", …)` and
`svitt-ego evaluate video-classification … --scoring head` work on it. `LoRA` is the adapter alone, `LoRA_merged` the
classifier with the adapter merged into its weights.

    svitt-ego demo --output svitt-ego-demo --training-videos
    python examples/finetune_with_peft.py --model svitt-ego-demo/model --world svitt-ego-demo/world
"""

import argparse
import csv
import json
import os
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm
from transformers import AutoModelForVideoClassification, AutoProcessor, ProcessorMixin, Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from modeling_svitt_ego import lora_target_modules
from modeling_svitt_ego.commands.arguments import CommandParser, non_negative_int, positive_int
from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.weights.loading import local_folder

# Peak learning rates: the fewer weights move, the further they have to.
LEARNING_RATES = {"linear probe": 1e-2, "LoRA": 5e-3, "full fine-tuning": 5e-4}


def main(argv: list[str] | None = None) -> dict:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model", default="svitt-ego-demo/model", help="folder of a pretrained model and processor")
    parser.add_argument(
        "--world", default="svitt-ego-demo/world", help="synthetic world with the splits train and test"
    )
    parser.add_argument(
        "--output", default="runs/finetune_with_peft", help="folder for adapter, models and results.json"
    )
    parser.add_argument("--steps", type=positive_int, default=600, help="optimizer steps of each of the three")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="clips per step")
    parser.add_argument("--rank", type=positive_int, default=8, help="rank of LoRA's updates")
    parser.add_argument(
        "--num-workers", type=non_negative_int, default=os.cpu_count() or 1, help="processes that decode"
    )
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="of the classifier and of the order of the clips"
    )
    arguments = parser.parse_args(argv)
    world, output, pretrained = Path(arguments.world), Path(arguments.output), local_folder(arguments.model)

    # 1. The classes: EgoClip's verb groups, by the name of each group in the world's taxonomy.
    with open(world / "train" / "verb_taxonomy.csv", encoding="utf-8", newline="") as file:
        verbs = [row["label"] for row in csv.DictReader(file)]

    # 2. The clips. Decoded once, four frames each, because every epoch of all three runs sees them again.
    processor = AutoProcessor.from_pretrained(pretrained, trust_remote_code=True)
    train_clips, test_clips = (
        decode_clips(world / split, processor, arguments.num_workers) for split in ("train", "test")
    )

    # 3. Three ways to train the same model.
    results = {}
    for method in LEARNING_RATES:
        set_seed(arguments.seed)  # the same new classifier for all
        model = AutoModelForVideoClassification.from_pretrained(
            pretrained,
            trust_remote_code=True,
            id2label=dict(enumerate(verbs)),
            label2id={verb: label for label, verb in enumerate(verbs)},
        )
        if method == "linear probe":
            model.requires_grad_(False)
            model.classifier.requires_grad_(True)
        elif method == "LoRA":
            # Low-rank updates of the video tower's query and value projections; the classifier is trained whole.
            config = LoraConfig(
                task_type="FEATURE_EXTRACTION",
                r=arguments.rank,
                lora_alpha=2 * arguments.rank,
                target_modules=lora_target_modules("vision"),
                modules_to_save=["classifier"],
            )
            model = get_peft_model(model, config)
        results[method] = fine_tune(model, method, train_clips, test_clips, processor, output, arguments)
        if method == "LoRA":
            # A classifier like the other two: `pipeline` and `svitt-ego evaluate` need no PEFT for it.
            merged = output / "LoRA_merged"
            model.merge_and_unload().save_pretrained(merged)
            processor.save_pretrained(merged)

    # 4. The three next to each other, and next to guessing.
    labels = test_clips.tensors[1]
    majority = Counter(train_clips.tensors[1].tolist()).most_common(1)[0][0]
    results = {
        "methods": results,
        "chance": 100 / len(verbs),
        "majority_class": 100 * (labels == majority).float().mean().item(),
        "num_classes": len(verbs),
        "num_train_clips": len(train_clips),
        "num_test_clips": len(test_clips),
        "arguments": vars(arguments),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(format_table(results))
    return results


def decode_clips(split: Path, processor: ProcessorMixin, num_workers: int) -> TensorDataset:
    """All clips of a split: pixels `(clips, frames, 3, height, width)` in half precision, verb labels `(clips,)`."""
    frames = EgoClipDataset(
        load_egoclip(split / "egoclip.csv"),
        VideoStore(split / "videos"),
        num_frames=processor.video_processor.num_frames,
        sampling="middle",
    )

    def collate(examples):
        videos = [example["video"] for example in examples]
        pixels = processor(videos=videos, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        return pixels.half(), torch.tensor([example["verb_tags"][0] for example in examples])

    loader = DataLoader(frames, batch_size=32, num_workers=num_workers, collate_fn=collate)
    batches = list(tqdm(loader, desc=f"decode {split.name}", unit="batch"))
    return TensorDataset(*(torch.cat(parts) for parts in zip(*batches)))


def fine_tune(
    model: nn.Module,
    method: str,
    train_clips: TensorDataset,
    test_clips: TensorDataset,
    processor: ProcessorMixin,
    output: Path,
    arguments: argparse.Namespace,
) -> dict:
    """Trains with the library's Trainer; saves the model (of LoRA the adapter) and the processor."""
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(output / method.replace(" ", "_")),
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=128,
            learning_rate=LEARNING_RATES[method],
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            max_grad_norm=1.0,
            logging_steps=100,
            label_names=["labels"],  # PEFT's wrapper hides the argument's name from the Trainer
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            seed=arguments.seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        processing_class=processor,  # saved with the model
        train_dataset=train_clips,
        eval_dataset=test_clips,
        data_collator=lambda clips: {
            "pixel_values_videos": torch.stack([pixels for pixels, _ in clips]).float(),
            "labels": torch.stack([label for _, label in clips]),
        },
        compute_metrics=lambda prediction: {
            "accuracy": 100 * float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        },
    )
    trainer.train()
    trainer.save_model()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    added = sum(p.numel() for name, p in base.named_parameters() if "lora_" in name or "modules_to_save" in name)
    size = sum(p.numel() for p in base.parameters()) - added
    return {
        "accuracy": trainer.evaluate()["eval_accuracy"],
        "trainable_parameters": trainable,
        "trainable_share": 100 * trainable / size,  # of the model's own parameters, without adapters
    }


def format_table(results: dict) -> str:
    lines = [
        "",
        f"Verb of a clip, {results['num_classes']} classes: {results['num_train_clips']} training clips, "
        f"{results['num_test_clips']} test clips of unseen scenes, seed {results['arguments']['seed']}",
        f"{'':20}{'trainable':>12}{'share %':>10}{'accuracy %':>12}",
        f"{'chance':20}{'':>12}{'':>10}{results['chance']:12.1f}",
        f"{'most frequent class':20}{'':>12}{'':>10}{results['majority_class']:12.1f}",
    ]
    for method, row in results["methods"].items():
        lines.append(
            f"{method:20}{row['trainable_parameters']:12,}{row['trainable_share']:10.2f}{row['accuracy']:12.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, stopped="methods that were finished are kept in --output; the same command starts again")
