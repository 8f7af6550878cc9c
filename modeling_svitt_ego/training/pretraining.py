"""Pretraining on EgoClip from the command line, with the published recipe as defaults (arXiv:2406.09462).

`svitt-ego pretrain` and examples/pretrain_egoclip.py run [`main`].
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoProcessor, AutoTokenizer, set_seed
from transformers.utils import logging

from ..data.clips import ClipCollator, EgoClipDataset
from ..data.egoclip import load_egoclip
from ..data.layouts import VideoStore
from ..data.rephrasings import Rephrasings, load_rephrased
from ..evaluation.egomcq import EgoMCQEvaluator
from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..model.modeling_svitt_ego import SViTTEgoForPreTraining
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from ..weights.loading import local_folder
from ..weights.tokenizer import train_tokenizer
from ..weights.warm_start import from_encoders
from .arguments import SViTTEgoTrainingArguments
from .command_line import run_command_line
from .manifest import checkpoints_of, damage
from .temporal_stages import apply_sparsity
from .trainer import SViTTEgoTrainer

logger = logging.get_logger(__name__)

MAX_FAILURE_SHARE = 0.05  # of the clips; the run ends if more of them are unreadable
USAGE = "%(prog)s --egoclip egoclip.csv --videos VIDEO_ROOT --output_dir FOLDER [options; --help lists them]"


@dataclass
class PretrainingOptions:
    """Data and starting weights of a pretraining run; everything else is a training argument."""

    egoclip: str = field(metadata={"help": "egoclip.csv with the clips and their narrations"})
    videos: str = field(metadata={"help": "folder of the videos, in any known layout"})
    egomcq: str | None = field(
        default=None, metadata={"help": "egomcq.json to evaluate on, as often as --eval_strategy says"}
    )
    egomcq_videos: str | None = field(
        default=None, metadata={"help": "folder of the videos of EgoMCQ; --videos if not given"}
    )
    rephrased: str | None = field(
        default=None,
        metadata={
            "help": "rephrased narrations, from which each epoch draws one or the original: a pickle of LaViLa, or a "
            "csv or parquet file with the columns video_uid, clip_start, clip_end, text"
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "start from a saved model: a folder, such as a converted release, or a Hub name"},
    )
    from_scratch: str | None = field(
        default=None,
        metadata={
            "help": "start from random weights, with a vocabulary learnt from the narrations: a folder with a "
            "config.json, or a configuration of the package such as svitt-ego-tiny"
        },
    )
    vision_encoder: str = field(
        default="microsoft/beit-base-patch16-224-pt22k-ft22k",
        metadata={"help": "BEiT that the video tower starts from, without --model and --from_scratch"},
    )
    text_encoder: str = field(
        default="bert-base-uncased",
        metadata={"help": "BERT that the text tower starts from, without --model and --from_scratch"},
    )
    num_frames: int | None = field(
        default=None,
        metadata={"help": "frames per clip; if not given, 4 from BEiT and BERT, else the number of the model"},
    )
    warmup_epochs: float = field(
        default=1.0, metadata={"help": "epochs of linear warm-up, unless --warmup_steps is given"}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "continue the run in --output_dir from its newest undamaged checkpoint, if there is one"},
    )


@dataclass
class Recipe(SViTTEgoTrainingArguments):
    """
    The published recipe. The learning rate (3e-5) and the weight decay (0.02) are defaults of
    [`SViTTEgoTrainingArguments`], the range of the temperature is that of the configuration. The release applies
    weight decay to [CLS], the bias tables and the temperature, and this recipe does not.
    """

    num_train_epochs: float = field(default=10.0)
    per_device_train_batch_size: int = field(default=32)
    # The release uses the maximum of the cosine and 1 %; the schedule of transformers decays smoothly to 1 %.
    lr_scheduler_type: str = field(default="cosine_with_min_lr")
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 0.01})
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: gradients are not clipped"})
    seed: int = field(default=42)
    save_strategy: str = field(default="steps")
    save_steps: float = field(default=1000)
    save_total_limit: int | None = field(default=2)
    logging_steps: float = field(default=50)


def main(argv: list[str] | None = None, **parser_settings) -> None:
    """Reads the command line and pretrains; see [`run_command_line`]."""
    run_command_line(pretrain, PretrainingOptions, Recipe, USAGE, argv, **parser_settings)


def pretrain(options: PretrainingOptions, arguments: Recipe) -> SViTTEgoTrainer:
    """Trains, saves the model for `AutoModel.from_pretrained` to `output_dir/model`, and scores it on EgoMCQ."""
    check_paths(options)
    if arguments.warmup_steps == 0 and options.warmup_epochs < arguments.num_train_epochs:
        arguments.warmup_steps = options.warmup_epochs / arguments.num_train_epochs  # below 1: a share of all steps
    set_seed(arguments.seed)
    checkpoint = checkpoint_of_run(arguments) if options.resume else None

    # 1. The clips: a memory-mapped table. The main process makes it, and the others read it.
    with arguments.main_process_first(desc="reading the table"):
        table = load_egoclip(options.egoclip)
    store = VideoStore(options.videos)
    refuse_missing_videos(table, store)

    # 2. The model and its processor.
    model, processor = starting_point(options, table["clip_text"], checkpoint)

    # 3. Training, resumed where it stopped.
    num_frames = model.config.vision_config.num_frames
    evaluator = None
    if options.egomcq is not None:
        evaluator = EgoMCQEvaluator(
            options.egomcq,
            options.egomcq_videos or options.videos,
            processor,
            num_frames,
            batch_size=arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
        )
    clips = EgoClipDataset(
        table,
        store,
        num_frames=num_frames,
        seed=arguments.seed,
        on_error="skip",
        max_failure_share=MAX_FAILURE_SHARE,
        texts=Rephrasings(table, load_rephrased(options.rephrased)) if options.rephrased else None,
    )
    trainer = SViTTEgoTrainer(
        model=model,
        args=arguments,
        train_dataset=clips,
        data_collator=ClipCollator(processor, do_random_resized_crop=True),
        processing_class=processor,
        evaluator=evaluator,
    )
    trainer.resume_hint = "The same command with --resume continues with the next step."
    if options.resume and trainer.is_world_process_zero():
        none = f"{arguments.output_dir} has no checkpoint, so the run starts from its beginning."
        print(f"Resuming from {checkpoint}." if checkpoint else none)
    trainer.train(resume_from_checkpoint=checkpoint)

    # 4. The result: a folder for AutoModel.from_pretrained, and EgoMCQ.
    trainer.save_model(str(Path(arguments.output_dir) / "model"))
    if evaluator is not None:
        trainer.save_metrics("eval", last_evaluation(trainer))
    return trainer


def check_paths(options: PretrainingOptions) -> None:
    """Raises an error for a path that does not exist, before anything is loaded."""
    for name in ("egoclip", "egomcq"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{name}: there is no file {path!r}.")
    for name in ("videos", "egomcq_videos"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_dir():
            raise FileNotFoundError(f"--{name}: there is no folder {path!r}.")
    if options.model is not None and options.from_scratch is not None:
        raise ValueError(f"Give --model ({options.model}) or --from_scratch ({options.from_scratch}), not both.")


def checkpoint_of_run(arguments: Recipe) -> str | None:
    """The newest undamaged checkpoint in the output folder; `None` if the folder has no checkpoint.

    If all checkpoints are damaged, the newest one is returned, and the trainer reports what is wrong with it.
    """
    there = checkpoints_of(Path(arguments.output_dir))
    whole = (path for path in there if not damage(path, arguments.world_size))
    found = next(whole, there[0] if there else None)
    return None if found is None else str(found)


def refuse_missing_videos(table, store: VideoStore) -> None:
    """Raises an error if so many clips lack their video that the run would end later, and else logs the number."""
    clips_of = Counter(table["video_uid"])
    first_start = dict(zip(reversed(table["video_uid"][:]), reversed(table["clip_start"][:])))
    absent = {uid: path for uid in clips_of if not (path := store.path(uid, max(0.0, first_start[uid]))).is_file()}
    if not absent:
        return
    count = sum(clips_of[uid] for uid in absent)
    message = (
        f"{len(absent)} of {len(clips_of)} videos, with {count} of {len(table)} clips, are missing in "
        f"{store.video_root} (layout {store.layout.name}), such as {next(iter(absent.values()))}"
    )
    if count > MAX_FAILURE_SHARE * len(table):
        raise FileNotFoundError(f"{message}. Check --videos; `svitt-ego doctor CSV VIDEO_ROOT` lists what is missing.")
    logger.warning(f"{message}; their clips are replaced by others.")


def starting_point(
    options: PretrainingOptions, narrations: list[str], checkpoint: str | None = None
) -> tuple[SViTTEgoForPreTraining, SViTTEgoProcessor]:
    """
    The model and its processor. They come from a checkpoint that is resumed, from a saved model, from BEiT and BERT as
    in SViTT, or are initialised at random.

    Args:
        narrations (`list[str]`): The vocabulary of a model with random weights is learnt from them.
        checkpoint (`str`, *optional*): Folder of a checkpoint. A resumed model keeps its vocabulary.
    """
    if checkpoint is not None:
        return SViTTEgoForPreTraining.from_pretrained(checkpoint), SViTTEgoProcessor.from_pretrained(checkpoint)
    if options.model is not None:
        model, processor = saved_model(options.model)
    elif options.from_scratch is not None:
        config = new_config(options.from_scratch)
        model = SViTTEgoForPreTraining._from_config(config)
        processor = make_processor(config, train_tokenizer(narrations, vocab_size=config.text_config.vocab_size))
    else:
        model = from_encoders(
            SViTTEgoForPreTraining, options.vision_encoder, options.text_encoder, num_frames=options.num_frames or 4
        )
        processor = make_processor(model.config, AutoTokenizer.from_pretrained(options.text_encoder))
    vision = model.config.vision_config
    if options.num_frames is not None and options.num_frames != vision.num_frames:
        apply_sparsity(model, {"num_frames": options.num_frames})
        processor.video_processor.num_frames = options.num_frames
    return model, processor


def saved_model(name: str) -> tuple[SViTTEgoForPreTraining, SViTTEgoProcessor]:
    """A saved model of any class with both towers. Missing parts get random weights, and a warning names them."""
    folder = local_folder(name)
    model, info = SViTTEgoForPreTraining.from_pretrained(folder, output_loading_info=True)
    tied = {target for target in model._tied_weights_keys or {}}
    parts = sorted({key.split(".")[0] for key in info["missing_keys"] if key not in tied})
    towers = [part for part in parts if part in ("vision_model", "text_model")]
    if towers:
        raise ValueError(f"--model: {name!r} has no weights of {', '.join(towers)}; it is not a pretrained SViTT-Ego.")
    if parts:
        logger.warning(f"{name} has no {', '.join(parts)}: these parts start from random weights.")
    return model, AutoProcessor.from_pretrained(folder)


def new_config(name: str) -> SViTTEgoConfig:
    """The configuration in a folder, or a configuration of the package by its name."""
    from ..hub.configs import hub_config, hub_config_names

    if name in hub_config_names():
        return hub_config(name)
    if not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"--from_scratch: {name!r} is neither a folder with a config.json nor one of "
            f"{', '.join(hub_config_names())}."
        )
    return SViTTEgoConfig.from_pretrained(name)


def make_processor(config: SViTTEgoConfig, tokenizer) -> SViTTEgoProcessor:
    vision = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    return SViTTEgoProcessor(SViTTEgoVideoProcessor(size=size, num_frames=vision.num_frames), tokenizer)


def last_evaluation(trainer: SViTTEgoTrainer) -> dict[str, float]:
    """The metrics of the final weights, from the log if the last step was evaluated, and computed now otherwise."""
    state = trainer.state
    logged = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
    changed = trainer.args.load_best_model_at_end and state.best_global_step not in (None, state.global_step)
    if logged and logged[-1]["step"] == state.global_step and not changed:
        return {name: value for name, value in logged[-1].items() if name.startswith("eval_")}
    return trainer.evaluate()
