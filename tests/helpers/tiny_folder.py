"""A whole saved model: the tiny towers, a processor of 32 px and a word tokenizer."""

from pathlib import Path

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor, SViTTEgoVideoProcessor
from modeling_svitt_ego.weights.tokenizer import train_tokenizer
from tests.helpers.tiny_model import tiny_config, with_weights

NARRATIONS = ["#C C picks up the cup", "#C C puts down the cup", "#C C opens the box"]


def save_tiny_folder(folder, cls=SViTTEgoModel, max_shard_size="5GB", **fields) -> Path:
    """Weights, code and processor as save_pretrained writes them; no card."""
    tokenizer = train_tokenizer(NARRATIONS, vocab_size=99)
    model = with_weights(cls._from_config(tiny_config(**fields)))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    video_processor = SViTTEgoVideoProcessor(size={"height": 32, "width": 32}, num_frames=4)
    SViTTEgoProcessor(video_processor, tokenizer).save_pretrained(folder)
    return Path(folder)
