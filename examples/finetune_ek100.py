"""Fine-tune a pretrained SViTT-Ego on EPIC-KITCHENS-100 multi-instance retrieval: all weights, LoRA, or a probe.

    python examples/finetune_ek100.py --model FOLDER --annotations ANNOTATIONS/retrieval_annotations \
        --videos EPIC-KITCHENS --layout epic --objective sms --method full --output_dir runs/ek100

A text for each clip is drawn among the sentences of relevance above 0.1 (InfoNCE: of relevance 1); the loss is SMS,
adaptive MI-MM, InfoNCE or InfoNCE with soft targets; after every epoch the test set is scored.
`--contrastive_batch_size 512 --per_device_train_batch_size 8` contrasts 512 clips in the memory of 8.
`--rerank_top_k 20` also trains the matching head and re-ranks the best 20 of each ranking with it. `--method probe`
trains the two projections on frozen towers. On the synthetic world of `svitt-ego demo`:

    svitt-ego demo --output svitt-ego-demo --training-videos
    python examples/finetune_ek100.py --model svitt-ego-demo/model --world svitt-ego-demo/world --num_train_epochs 6

Every argument of `transformers.TrainingArguments` works; `--help` lists them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoProcessor, HfArgumentParser, set_seed

from modeling_svitt_ego import (
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
    SViTTEgoTrainer,
    SViTTEgoTrainingArguments,
    load_epic_kitchens,
)
from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.decoded_clips import DecodedClips
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.data.relevance import RelevantSentences, RetrievalCollator, training_table
from modeling_svitt_ego.demo.synthetic_benchmarks import write_epic_kitchens
from modeling_svitt_ego.demo.synthetic_world import WorldPaths
from modeling_svitt_ego.evaluation.ek100 import EK100Evaluator
from modeling_svitt_ego.model.contrastive import Contrastive
from modeling_svitt_ego.training.retrieval_objectives import RETRIEVAL_OBJECTIVES, FollowSchedules, RelevanceMatching
from modeling_svitt_ego.weights.lora import add_lora

PATHS = "model", "annotations", "videos", "world", "cache_clips"
PROJECTIONS = "video_projection", "text_projection"
LEARNING_RATES = {"full": 3e-5, "lora": 1e-3, "probe": 1e-3}


@dataclass
class Options:
    """Data, starting weights and objective; the rest are training arguments."""

    model: str = field(metadata={"help": "pretrained model: a folder or a Hub name"})
    annotations: str | None = field(default=None, metadata={"help": "folder of EPIC_100_retrieval_{train,test}*.csv"})
    videos: str | None = field(default=None, metadata={"help": "folder of the videos"})
    layout: str | None = field(default=None, metadata={"help": "of the videos: epic, epic-avion, …; else found"})
    world: str | None = field(default=None, metadata={"help": "instead of both: the world of `svitt-ego demo`"})
    method: str = field(default="full", metadata={"help": "full, lora or probe"})
    rank: int = field(default=8, metadata={"help": "rank of LoRA's updates"})
    lora_modules: str = field(
        default="q_proj,v_proj", metadata={"help": "updated in every layer; also k_proj, o_proj, fc1, fc2"}
    )
    objective: str = field(default="sms", metadata={"help": "sms, mi_mm, soft_info_nce or info_nce"})
    margin: str | None = field(default=None, metadata={"help": "of sms and mi_mm: a number, or cosine:0.4:0.8:5"})
    temperature: str | None = field(default=None, metadata={"help": "a number or a schedule; trained otherwise"})
    relevance_threshold: float | None = field(
        default=None, metadata={"help": "sentences above it are drawn; 0.1, with info_nce only those of relevance 1"}
    )
    template: str = field(default="{}", metadata={"help": "what is made of a sentence, such as '#C C {}'"})
    num_frames: int | None = field(default=None, metadata={"help": "frames per clip; the model's own otherwise"})
    cache_clips: str | None = field(
        default=None, metadata={"help": "folder for decoded training clips: decode once, train many epochs and runs"}
    )
    rerank_top_k: int | None = field(default=None, metadata={"help": "also train the matching head, and re-rank"})
    rerank_weight: float = field(default=1.0, metadata={"help": "of the matching head's loss"})


@dataclass
class Recipe(SViTTEgoTrainingArguments):
    output_dir: str = field(default="runs/finetune_ek100")
    num_train_epochs: float = field(default=20.0)
    per_device_train_batch_size: int = field(default=32)
    learning_rate: float | None = field(default=None, metadata={"help": "by default 3e-5 (full), 1e-3 (lora, probe)"})
    lr_scheduler_type: str = field(default="cosine")
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="no")
    scene_aware_negatives: bool = field(default=False)
    report_to: str = field(default="none")


def main(argv: list[str] | None = None) -> dict:
    parser = HfArgumentParser((Options, Recipe), description=__doc__)
    options, args = parser.parse_args_into_dataclasses(argv)
    objectives = (*RETRIEVAL_OBJECTIVES, "info_nce")
    for name, known in (("method", LEARNING_RATES), ("objective", objectives)):
        if getattr(options, name) not in known:
            raise ValueError(f"--{name} ({getattr(options, name)}) must be one of {', '.join(known)}.")
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATES[options.method]
    set_seed(args.seed)

    # 1. The csv files of both splits. The synthetic world writes its own, with the same names.
    if options.world is not None:
        options.annotations = str(Path(options.world) / "epic-kitchens")
        world = WorldPaths(Path(options.world), ("train", "test"))
        if not any(world["train"].videos.glob("*")):
            raise ValueError(f"{options.world} has no training videos: render it by svitt-ego demo --training-videos.")
        options.videos, options.layout = str(write_epic_kitchens(world, options.annotations) / "videos"), "epic"
    elif options.annotations is None or options.videos is None:
        raise ValueError("Give --annotations and --videos, or --world.")
    train, test = (
        [Path(options.annotations) / f"EPIC_100_retrieval_{split}{kind}.csv" for kind in ("", "_sentence")]
        for split in ("train", "test")
    )

    # 2. The model with its objectives, before anything is frozen or wrapped.
    rerank = options.rerank_top_k is not None
    model = (SViTTEgoForVideoTextRetrieval if rerank else SViTTEgoModel).from_pretrained(options.model)
    processor = AutoProcessor.from_pretrained(options.model)
    num_frames = options.num_frames or model.config.vision_config.num_frames
    if options.objective == "info_nce":
        model.config.contrastive_loss = "info_nce"
        objective = Contrastive(weight=1.0)  # whatever weight the model was pretrained with
    else:
        margin = {} if options.margin is None else {"margin": options.margin}
        objective = RETRIEVAL_OBJECTIVES[options.objective](**margin)
    model.objectives = [objective, *([RelevanceMatching(weight=options.rerank_weight)] if rerank else [])]
    wrapped = model
    if options.method == "lora":
        towers = ("vision", "text", *(["fusion"] if rerank else []))
        heads = ["vtm_head"] if rerank else []
        modules = options.lora_modules.split(",")
        wrapped = add_lora(model, *towers, rank=options.rank, modules=modules, adapted=PROJECTIONS, trained=heads)
    elif options.method == "probe":
        model.requires_grad_(False)
        for head in (*PROJECTIONS, *(["vtm_head"] if rerank else [])):
            getattr(model, head).requires_grad_(True)

    # 3. Clips, each with a sentence that fits it; and the evaluator of the test set. InfoNCE takes every pair for a
    # whole match, so it is given no others.
    if options.relevance_threshold is None:
        options.relevance_threshold = 0.99 if options.objective == "info_nce" else 0.1
    clips, sentences = load_epic_kitchens(train[0], split="train"), load_epic_kitchens(*train, split="train")
    texts = RelevantSentences(clips, sentences, options.relevance_threshold, options.template)
    store = VideoStore(options.videos, options.layout)
    reading = {"num_frames": num_frames, "seed": args.seed, "texts": texts}
    if options.cache_clips is None:
        dataset = EgoClipDataset(training_table(clips), store, **reading)
    else:
        dataset = DecodedClips(training_table(clips), store, options.cache_clips, **reading)
    scoring = {"scoring": "rerank", "top_k": options.rerank_top_k} if rerank else {}
    workers = args.dataloader_num_workers
    common = {"template": options.template, "layout": options.layout, "num_workers": workers}
    evaluator = EK100Evaluator(*test, options.videos, processor, num_frames, **common)
    if options.cache_clips is not None:  # vectors by weights: the start is embedded once for all runs
        common["cache"] = Path(options.cache_clips) / "embeddings"
    final = EK100Evaluator(*test, options.videos, processor, num_frames, **common)

    # 4. Zero-shot, training, and the result.
    zero_shot = final(model)
    trainer = SViTTEgoTrainer(
        model=wrapped,
        args=args,
        train_dataset=dataset,
        data_collator=RetrievalCollator(processor, do_random_resized_crop=True),
        processing_class=processor,
        evaluator=evaluator,
        callbacks=[FollowSchedules(model.objectives, options.temperature)],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    reports = {"zero_shot": zero_shot, "dual": final(model)}
    if rerank:
        reports["rerank"] = EK100Evaluator(*test, options.videos, processor, num_frames, **common, **scoring)(model)
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    added = sum(p.numel() for name, p in wrapped.named_parameters() if "lora_" in name or "modules_to_save" in name)
    results = {
        "metrics": {name: report.shown() for name, report in reports.items()},
        "trainable_share": 100 * trainable / (sum(p.numel() for p in wrapped.parameters()) - added),
        "num_train_clips": len(dataset),
        "num_test_clips": zero_shot.num_items,
        "options": {name: value for name, value in vars(options).items() if name not in PATHS},
        "seed": args.seed,
    }

    # 5. The whole model, adapters merged, so that `svitt-ego evaluate ek100` takes it as it is.
    output = Path(args.output_dir)
    if options.method == "lora":
        wrapped.save_pretrained(output / "adapter")
        model = wrapped.merge_and_unload()
    model.save_pretrained(output / "model")
    processor.save_pretrained(output / "model")
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, metrics in results["metrics"].items():
        print(f"{name:10}" + "".join(f"{metric:>6} {value:5.1f}" for metric, value in metrics.items()))
    return results


if __name__ == "__main__":
    run_script(main)
