"""SViTTEgoTrainer on clips made on the spot: what it logs, what it decays, and the order of the data."""

import pytest
import torch

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.hub.configs import hub_config
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.training.naming_clips import CLIPS
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for first, uid in enumerate(("video-a", "video-b")):
        write_video(root / "videos" / uid / "0.mp4", 200, first=5 * first)
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(16)]
    table = load_egoclip(write_egoclip(root / "e.csv", rows), cache_dir=str(root / "c"))
    return table, VideoStore(root / "videos")


def make_trainer(corpus, folder, **arguments):
    table, store = corpus
    torch.manual_seed(0)
    processor = build_processor(table["clip_text"])
    model = SViTTEgoModel(hub_config("svitt-ego-tiny"))
    settings = dict(max_steps=4, per_device_train_batch_size=4, logging_steps=2, learning_rate=1e-3)
    return SViTTEgoTrainer(
        model=model,
        args=SViTTEgoTrainingArguments(
            output_dir=str(folder), report_to="none", save_strategy="no", use_cpu=True, **(settings | arguments)
        ),
        train_dataset=EgoClipDataset(table, store),
        data_collator=ClipCollator(processor),
        processing_class=processor,
    )


def test_each_part_of_the_loss_is_logged(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert {"contrastive", "temperature", "positives_per_clip"} <= set(entry)
        assert entry["contrastive"] == pytest.approx(entry["loss"], abs=1e-3)
        assert entry["positives_per_clip"] >= 1


def test_two_runs_with_one_seed_end_with_the_same_weights(corpus, tmp_path):
    """Catches an order of clips, frames or patterns that depends on anything but the seed."""
    states = []
    for name in ("one", "two"):
        trainer = make_trainer(corpus, tmp_path / name)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_scene_aware_batches_hold_partners_and_say_so(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, scene_seconds=60.0)
    trainer.train()
    statistics = trainer.batch_sampler.statistics
    assert statistics.scene_partners > 0 and statistics.batches >= 4


def test_weight_decay_spares_biases_norms_tables_cls_and_temperature(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    for name, parameter in trainer.model.named_parameters():
        spared = parameter.dim() < 2 or "bias_table" in name or "cls_token" in name or name == "temperature"
        assert (name in decayed) is not spared, name


def test_a_shared_noun_batch_holds_one_noun(corpus, tmp_path):
    """Catches an argument that reaches no sampler."""
    trainer = make_trainer(corpus, tmp_path, scene_aware_negatives=False, shared_noun_share=1.0, max_steps=3)
    nouns = trainer.train_dataset.table["tag_noun"]
    seen, step = [], trainer.training_step

    def recording(model, inputs, *rest):
        seen.append(set.intersection(*(set(nouns[clip["row"]]) for clip in inputs[CLIPS])))
        return step(model, inputs, *rest)

    trainer.training_step = recording
    trainer.train()
    assert len(seen) == 3 and all(seen)
