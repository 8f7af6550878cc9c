"""Frame order as a control, and what a Trainer logs of one evaluator or several."""

import numpy as np
import pytest
import torch
from torch import nn

from modeling_svitt_ego.data.frame_order import FRAME_ORDERS, ordered_frames
from modeling_svitt_ego.evaluation.clip_rows import CollateViews
from modeling_svitt_ego.evaluation.encoding import EncoderSettings
from modeling_svitt_ego.evaluation.evaluator import Evaluator, run_evaluators
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.evaluation.views import Views


def test_orders_by_hand():
    assert ordered_frames(4, "natural", 0).tolist() == [0, 1, 2, 3]
    assert ordered_frames(4, "reversed", 0).tolist() == [3, 2, 1, 0]
    assert ordered_frames(5, "repeated", 0).tolist() == [2] * 5
    for seed in range(50):
        shuffled = ordered_frames(3, "shuffled", seed).tolist()
        assert sorted(shuffled) == [0, 1, 2] and shuffled != [0, 1, 2]
    assert ordered_frames(1, "shuffled", 0).tolist() == [0]
    with pytest.raises(ValueError, match="backwards.*natural, shuffled, reversed, repeated"):
        EncoderSettings(frame_order="backwards")


@pytest.mark.parametrize("frame_order", FRAME_ORDERS)
def test_frames_reach_the_processor_in_the_order(frame_order):
    """Catches an order that is named in the report and not applied."""
    seen = []

    def processor(videos, **_):
        seen.extend(videos)
        return {"pixel_values_videos": torch.zeros(len(videos), 4, 3, 2, 2)}

    video = np.arange(4)
    CollateViews(processor, frame_order, Views())([(7, video, None)])
    assert seen[0].tolist() == video[ordered_frames(4, frame_order, seed=7)].tolist()


class Fixed(Evaluator):
    primary_metric = "score"

    def __init__(self, benchmark, score):
        self.benchmark, self.score, self.dataset = benchmark, score, [0]

    def __call__(self, model):
        return EvaluationReport(self.benchmark, {"score": self.score}, ["score"], 5, "dual", counts={"num": 5})


def test_several_evaluators_are_logged_by_name():
    one, two = Fixed("egomcq", 1.0), Fixed("ek100", 2.0)
    model = nn.Linear(1, 1)
    assert run_evaluators(one, model) == ({"eval_score": 1.0, "eval_num": 5}, 5)
    logged, num_items = run_evaluators([one, two], model, prefix="test")
    assert logged == {"test_egomcq_score": 1.0, "test_egomcq_num": 5, "test_ek100_score": 2.0, "test_ek100_num": 5}
    assert num_items == 10
    with pytest.raises(ValueError, match="Two evaluators are called 'egomcq'"):
        run_evaluators([one, Fixed("egomcq", 3.0)], model)
    one.name = "kitchen"
    assert "eval_kitchen_score" in run_evaluators([one, two], model)[0]
