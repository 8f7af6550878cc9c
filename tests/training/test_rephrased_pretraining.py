"""`svitt-ego pretrain --rephrased`: the texts of a run are its narrations or those of the file, by epoch."""

import pytest
from transformers import HfArgumentParser

from modeling_svitt_ego.training.pretraining import PretrainingOptions, Recipe, pretrain
from tests.helpers.tiny_pretraining import make_corpus, small_config


def test_pretraining_draws_rephrased_narrations(tmp_path):
    """Catches a file that is read and not used, and texts that do not change with the epoch."""
    root = make_corpus(tmp_path)
    small_config(lively=False).save_pretrained(root / "config")
    rows = "".join(f"video-{'ab'[i % 2]},{1.0 + i},{2.0 + i},#C C grabs thing {i}\n" for i in range(16))
    (root / "rephrased.csv").write_text("video_uid,clip_start,clip_end,text\n" + rows)
    arguments = ["--egoclip", root / "e.csv", "--videos", root / "videos", "--from_scratch", root / "config"]
    arguments += ["--rephrased", root / "rephrased.csv", "--output_dir", root / "run"]
    arguments += "--use_cpu --max_steps 1 --report_to none --disable_tqdm true --vtm_weight 0 --mlm_weight 0".split()
    arguments += "--scene_aware_negatives false --per_device_train_batch_size 4".split()
    parser = HfArgumentParser((PretrainingOptions, Recipe))
    dataset = pretrain(*parser.parse_args_into_dataclasses([str(argument) for argument in arguments])).train_dataset
    assert dataset.texts.num_found == 16
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        seen.add(dataset[3]["text"])
    assert seen == {"#C C picks item 3", "#C C grabs thing 3"}
    (root / "rephrased.csv").write_text("video_uid,clip_start,clip_end,text\nvideo-z,0,1,#C C waits\n")
    with pytest.raises(ValueError, match="None of the 16 rows"):
        again = [str(argument) for argument in [*arguments, "--output_dir", root / "other"]]
        pretrain(*parser.parse_args_into_dataclasses(again))
