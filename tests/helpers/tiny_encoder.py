"""A tiny dual encoder with its processor, and tiny EgoNLQ files, for the tests of features, search and grounding."""

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor, SViTTEgoVideoProcessor
from modeling_svitt_ego.weights.tokenizer import train_tokenizer
from tests.helpers.tiny_model import tiny_model

TEXTS = ["#C C picks up the cup", "where did i put the pan?", "#C C opens the box", "did i close the box?"]


def tiny_encoder():
    tokenizer = train_tokenizer(TEXTS, vocab_size=99)
    processor = SViTTEgoProcessor(SViTTEgoVideoProcessor(size={"height": 32, "width": 32}), tokenizer)
    return tiny_model(SViTTEgoModel, text={"max_position_embeddings": 32}), processor


def save_tiny_encoder(folder):
    model, processor = tiny_encoder()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def nlq_content(videos):
    """`{video_uid: [(clip_start, clip_end, [(query, start, end), …]), …]}` as an `nlq_*.json`."""
    return {
        "videos": [
            {
                "video_uid": uid,
                "clips": [
                    {
                        "clip_uid": f"{uid}-clip{i}",
                        "video_start_sec": clip_start,
                        "video_end_sec": clip_end,
                        "annotations": [
                            {
                                "annotation_uid": f"{uid}-a{i}",
                                "language_queries": [
                                    {"query": query, "clip_start_sec": start, "clip_end_sec": end}
                                    for query, start, end in queries
                                ],
                            }
                        ],
                    }
                    for i, (clip_start, clip_end, queries) in enumerate(clips)
                ],
            }
            for uid, clips in videos.items()
        ]
    }
