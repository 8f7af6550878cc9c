"""`svitt-ego convert SOURCE OUT`: converts a SViTT(-Ego) checkpoint to a folder that `from_pretrained` loads."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import non_negative_int, positive_int, share

if TYPE_CHECKING:
    from ..model.configuration_svitt_ego import SViTTEgoConfig, SViTTEgoVisionConfig
    from ..model.pretrained_svitt_ego import SViTTEgoPreTrainedModel
    from ..model.processing_svitt_ego import SViTTEgoProcessor
    from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor
    from ..weights.released_files import Checkpoint


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="checkpoint of the SViTT code: .pth, .pt or .safetensors")
    add("out", metavar="OUT", help="new folder for the configuration, the weights, the code and the processor")
    add(
        "--release",
        choices=("svitt-ego", "svitt"),
        default="svitt-ego",
        help="published release whose settings are used for every option below that is not given",
    )
    add(
        "--config",
        metavar="FILE",
        help="run configuration of the SViTT code (.yaml or .json) to use instead of the settings of --release",
    )
    add("--num-local-blocks", type=non_negative_int, metavar="K_l", help="local blocks per query block")
    add(
        "--num-random-blocks",
        type=_blocks,
        default=argparse.SUPPRESS,
        metavar="K_r",
        help="random blocks per query block; 'none' means dense attention",
    )
    add("--block-size", type=positive_int, metavar="G", help="tokens per block")
    add("--keep-rate", type=share, metavar="q_v", help="share of patch tokens that each pruning layer keeps")
    add(
        "--prune-layers",
        type=non_negative_int,
        nargs="*",
        metavar="LAYER",
        help="layers of the video tower that prune, counted from 0",
    )
    add(
        "--fusion-keep-rate",
        type=share,
        metavar="q_m",
        help="share of video tokens that each pruning layer of the fusion tower keeps",
    )
    add(
        "--fusion-prune-layers",
        type=non_negative_int,
        nargs="*",
        metavar="LAYER",
        help="layers of the fusion tower that prune, counted from 0",
    )
    add(
        "--image-size",
        type=positive_int,
        metavar="PIXELS",
        help="height and width of a frame; needed only if the checkpoint fits several sizes",
    )
    add(
        "--num-frames",
        type=positive_int,
        metavar="T",
        help="resample the bias tables so that the model takes clips of T frames",
    )
    add(
        "--time-mode",
        choices=("symmetric", "released"),
        default="symmetric",
        help="with --num-frames: how the bias tables are resampled along time",
    )
    add(
        "--tokenizer",
        metavar="NAME",
        default="bert-base-uncased",
        help="vocabulary of the text encoder: Hub name, folder or vocab.txt; 'none' converts without a processor",
    )
    add("--overwrite", action="store_true", help="replace OUT if it exists")


def _blocks(text: str) -> int | None:
    return None if text.lower() == "none" else non_negative_int(text)


# Options that set the configuration field of the same name. The release decides where an option is not given.
_FIELDS = (
    "num_local_blocks",
    "block_size",
    "keep_rate",
    "prune_layers",
    "fusion_keep_rate",
    "fusion_prune_layers",
    "image_size",
)


def run_convert(arguments: argparse.Namespace) -> None:
    """Converts the checkpoint and prints one line per step. OUT is written as a whole or not at all."""
    for line in convert(arguments):
        print(line, flush=True)


def convert(arguments: argparse.Namespace) -> Iterator[str]:
    """Does the work and yields a line for each finished step."""
    from ..files.writing import folder_aside
    from ..weights.released_checkpoint import model_from_checkpoint
    from ..weights.released_files import read_checkpoint, read_settings

    source, out = Path(arguments.source), Path(arguments.out)
    _check_out(out, source, arguments.overwrite)
    settings = None if arguments.config is None else read_settings(arguments.config)
    checkpoint = read_checkpoint(source)
    vocabulary = None if arguments.tokenizer == "none" else read_vocabulary(arguments.tokenizer)
    yield f"{source}: {len(checkpoint.state_dict)} tensors"

    fields = {name: getattr(arguments, name) for name in _FIELDS if getattr(arguments, name) is not None}
    fields |= _random_blocks_given(arguments) | _token_ids(vocabulary)
    model = model_from_checkpoint(checkpoint, None, arguments.release, settings, **fields)
    yield _summary(model, arguments, checkpoint, settings)
    if note := _note_on_pairing(model.config.vision_config):
        yield note

    frames = model.config.vision_config.num_frames
    if arguments.num_frames not in (None, frames):
        model.resize_frames(arguments.num_frames, arguments.time_mode)
        yield f"resampled from {frames} to {arguments.num_frames} frames ({arguments.time_mode})"
    processor = _processor(model.config, vocabulary)
    if vocabulary is not None and len(vocabulary) < model.config.text_config.vocab_size:
        yield (
            f"note: the tokenizer has {len(vocabulary)} tokens and the checkpoint embeds "
            f"{model.config.text_config.vocab_size}; make sure that they belong together"
        )

    with folder_aside(out) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    if vocabulary is None:
        yield f"{out}: with --tokenizer none, the folder has a video processor but no tokenizer"
    yield f"{out}: finished; load it with AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)"


def _note_on_pairing(vision: "SViTTEgoVisionConfig") -> str | None:
    """A note on the cost of reproducing the local blocks of the SViTT code, where they differ from ours."""
    if vision.num_mirrored_blocks == 0:
        return None
    return (
        f"note: with {vision.num_local_blocks} local blocks the SViTT code takes the keys of the neighbour b+r of "
        "query block b, but the bias and the values of block b-r. The converted model does the same "
        "(released_attention=true in its vision_config): plain operations compute it, several times slower than the "
        "kernels on a GPU, and attn_implementation='flex_attention' refuses it."
    )


def _check_out(out: Path, source: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} already exists; --overwrite replaces it.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file()):
        raise ValueError(f"{out} is not the folder of a model (it has no config.json), so it is not replaced.")
    if out.resolve() in source.resolve().parents:
        raise ValueError(f"{source} is in {out}, which would be replaced; choose another folder.")


def _random_blocks_given(arguments: argparse.Namespace) -> dict:
    """The option as a field if it was given: its value may be `None` (dense attention)."""
    given = "num_random_blocks" in arguments
    return {"num_random_blocks": arguments.num_random_blocks} if given else {}


def read_vocabulary(source: str) -> dict[str, int]:
    """
    The vocabulary (token to id) of a BERT tokenizer.

    Args:
        source (`str`): A `vocab.txt`, a folder with a `vocab.txt` or a saved tokenizer, or a Hub name.

    Raises:
        ValueError: The tokenizer cannot be loaded; the message names the remedy.
    """
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoTokenizer

    path = Path(source)
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # the messages about its retries would hide the line below
    try:
        if not path.exists():
            try:
                path = Path(huggingface_hub.hf_hub_download(source, "vocab.txt"))
            except RemoteEntryNotFoundError:  # a repository without this file: AutoTokenizer knows its format
                pass
        file = path / "vocab.txt" if path.is_dir() else path
        if file.is_file():
            return {token: i for i, token in enumerate(file.read_text(encoding="utf-8").splitlines())}
        return AutoTokenizer.from_pretrained(source).get_vocab()
    except Exception as error:  # both libraries raise many kinds of errors here
        raise ValueError(
            f"The tokenizer '{source}' cannot be loaded from a folder or from the Hub ({type(error).__name__}). Give "
            "--tokenizer the folder or the vocab.txt of bert-base-uncased, or 'none' to convert without a tokenizer."
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)


def _token_ids(vocabulary: dict[str, int] | None) -> dict:
    if vocabulary is None:
        return {}
    names = {"pad_token_id": "[PAD]", "cls_token_id": "[CLS]", "mask_token_id": "[MASK]"}
    missing = [token for token in names.values() if token not in vocabulary]
    if missing:
        raise ValueError(f"The tokenizer is not BERT's: its vocabulary lacks {', '.join(missing)}.")
    return {f"text_{name}": vocabulary[token] for name, token in names.items()}


def _processor(
    config: "SViTTEgoConfig", vocabulary: dict[str, int] | None
) -> "SViTTEgoProcessor | SViTTEgoVideoProcessor":
    """The processing of the release: resizing without antialiasing, text cleaning as in `pre_text`, no [SEP]."""
    from ..model.processing_svitt_ego import SViTTEgoProcessor
    from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor
    from ..weights.tokenizer import build_tokenizer

    vision = config.vision_config
    video_processor = SViTTEgoVideoProcessor(
        num_frames=vision.num_frames,
        size={"height": vision.image_size, "width": vision.image_size},
        antialias=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    if vocabulary is None:
        return video_processor
    size = config.text_config.vocab_size
    if max(vocabulary.values()) >= size:
        raise ValueError(
            f"The tokenizer has ids up to {max(vocabulary.values())}, but the checkpoint embeds {size} tokens: it was "
            "trained with another tokenizer (bert-base-uncased for the releases)."
        )
    return SViTTEgoProcessor(video_processor, build_tokenizer(vocabulary, add_sep=False), text_cleaning="svitt")


def _summary(
    model: "SViTTEgoPreTrainedModel", arguments: argparse.Namespace, checkpoint: "Checkpoint", settings: dict | None
) -> str:
    vision, fusion = model.config.vision_config, model.config.cross_modal_config
    if settings is not None:
        origin = arguments.config
    elif checkpoint.settings is not None:
        origin = "the configuration inside the checkpoint"
    else:
        origin = f"--release {arguments.release}"
    edges = "dense attention"
    if vision.num_random_blocks is not None:
        edges = f"(K_l, K_r, G) = ({vision.num_local_blocks}, {vision.num_random_blocks}, {vision.block_size})"
    return (
        f"{type(model).__name__}, {model.num_parameters():,} parameters, {vision.num_frames} frames of "
        f"{vision.image_size} px; {edges}, q_v = {vision.keep_rate} after layers {vision.prune_layers}, q_m = "
        f"{fusion.keep_rate} after fusion layers {fusion.prune_layers} (options, then {origin})"
    )


__all__ = ["add_convert_arguments", "convert", "read_vocabulary", "run_convert"]
