"""Views of test clips: which frames and pixels they are, and that their vectors are averaged."""

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_svitt_ego import SViTTEgoForVideoTextRetrieval
from modeling_svitt_ego.data.clips import EgoClipDataset
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.evaluation.encoding import Encoder, EncoderSettings
from modeling_svitt_ego.evaluation.views import Views, three_crops
from modeling_svitt_ego.weights.loading import load_processor
from tests.helpers.tiny_data import frame_numbers, write_video
from tests.helpers.tiny_folder import save_tiny_folder


def test_each_set_of_frames_covers_the_window():
    """Catches sets that are consecutive parts, each of which would see a part of the action only."""
    video = np.arange(6)[:, None, None, None] * np.ones((1, 2, 4, 3))
    first, second = Views(num_clips=2).of_frames(video)
    assert first[:, 0, 0, 0].tolist() == [0, 2, 4] and second[:, 0, 0, 0].tolist() == [1, 3, 5]
    with pytest.raises(ValueError, match="6 frames"):
        Views(num_clips=4).of_frames(video)


@pytest.mark.parametrize("wide", [True, False])
def test_three_crops_reach_both_ends(wide):
    frames = np.arange(10).reshape(1, 1, 10, 1) * np.ones((1, 4, 1, 1))
    frames = frames if wide else frames.swapaxes(1, 2)
    crops = three_crops(frames)
    assert [crop.shape for crop in crops] == [(1, 4, 4, 1)] * 3
    assert [(crop.min(), crop.max()) for crop in crops] == [(0, 3), (3, 6), (6, 9)]


def test_number_and_name_of_the_views():
    assert str(Views()) == "1 view" and len(Views()) == 1
    views = Views(2, "three", True)
    assert len(views) == 12 and str(views).startswith("12 views") and "mirrored" in str(views)
    for fields in ({"num_clips": 0}, {"crops": "five"}):
        with pytest.raises(ValueError, match="must be"):
            Views(**fields)


@torch.no_grad()
def test_vectors_and_matches_are_means_over_the_views(tmp_path):
    """Against one view at a time; catches views that are mixed with rows, and a mean that is not of unit length."""
    write_video(tmp_path / "videos" / "a.mp4", 60, noise=40)
    table = datasets.Dataset.from_dict(
        {"video_uid": ["a"] * 3, "clip_start": [0.0, 1.0, 3.0], "clip_end": [2.0, 3, 6]}
    )
    folder = save_tiny_folder(tmp_path / "model", SViTTEgoForVideoTextRetrieval)
    model, processor = SViTTEgoForVideoTextRetrieval.from_pretrained(folder).eval(), load_processor(folder)
    views = Views(num_clips=2, crops="three", flip=True)
    clips = EgoClipDataset(table, VideoStore(tmp_path / "videos"), num_frames=8, sampling="middle")
    texts, pairs = ["#C C opens", "#C C closes"], np.array([[0, 1], [2, 0], [2, 1]])
    settings = EncoderSettings(batch_size=2, views=views)
    found = Encoder(processor, settings).clips(model, clips, texts=texts, pairs=pairs)

    def one_view(row, part, crop, flip):
        video = three_crops(clips[row]["video"][part::2])[crop]
        pixels = processor(
            videos=[video],
            return_tensors="pt",
            do_sample_frames=False,
            do_random_resized_crop=False,
            do_random_flip=False,
        )["pixel_values_videos"]
        return model.get_video_features(pixels.flip(-1) if flip else pixels, return_dict=True)

    all_views = [(part, crop, flip) for flip in (False, True) for part in (0, 1) for crop in (0, 1, 2)]
    for row in range(3):
        outputs = [one_view(row, *view) for view in all_views]
        mean = torch.stack([F.normalize(out.pooler_output[0], dim=-1) for out in outputs]).mean(0)
        torch.testing.assert_close(torch.tensor(found.embeds[row]), F.normalize(mean, dim=-1), rtol=1e-4, atol=1e-5)
        for number in np.flatnonzero(pairs[:, 0] == row):
            odds = [Encoder(processor)._match(model, [texts[pairs[number, 1]]], o.last_hidden_state) for o in outputs]
            assert found.match_logits[number] == pytest.approx(np.mean(odds), abs=1e-4)
    plain = Encoder(processor).clips(model, EgoClipDataset(table, clips.store, num_frames=4, sampling="middle"))
    assert frame_numbers(clips[0]["video"])[:2] != [0, 0] and not np.allclose(plain.embeds, found.embeds, atol=1e-3)
