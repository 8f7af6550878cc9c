"""A picture of the patches that pruning keeps, at every evaluation, to the trackers of `report_to`."""

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from ..data.clips import EgoClipDataset
from ..evaluation.kept_patches import draw_surviving_patches

logger = logging.get_logger(__name__)

NAME = "eval/kept_patches"


class LogKeptPatches(TrainerCallback):
    """
    Sends the picture of one clip, the same at each evaluation: a row per pruning layer, a column per frame.

    The clip is the first one of the evaluation set, or of the training set where the evaluation set has other rows
    (EgoMCQ). TensorBoard, wandb and trackio get it; other trackers are left alone. Without one of these three, or with
    a model that does not prune, nothing is computed.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._frames: np.ndarray | None = None

    def on_evaluate(self, args, state, control, **kwargs):
        vision = self.trainer.core.config.vision_config
        if not state.is_world_process_zero or vision.keep_rate >= 1 or not vision.prune_layers:
            return
        trackers = [x for x in self.trainer.callback_handler.callbacks if isinstance(x, tuple(_SEND))]
        dataset = self._dataset()
        if not trackers or dataset is None:
            return
        if self.trainer.is_fsdp_enabled:
            logger.warning_once("No picture of the kept patches: FSDP has spread the model over the processes.")
            return
        frames = self._read(dataset)
        title = dataset.table[0]["clip_text"]
        picture = draw_surviving_patches(self.trainer.core, self.trainer.processing_class, frames, title)
        for tracker in trackers:
            send = next(send for kind, send in _SEND.items() if isinstance(tracker, kind))
            send(tracker, picture, state.global_step)

    def _dataset(self) -> EgoClipDataset | None:
        sets = self.trainer.eval_dataset, self.trainer.train_dataset
        return next((x for x in sets if isinstance(x, EgoClipDataset)), None)

    def _read(self, dataset: EgoClipDataset) -> np.ndarray:
        """Read once: another epoch would draw other frames. A stage of training may ask for more of them."""
        if self._frames is None or len(self._frames) != dataset.num_frames:
            self._frames = dataset[0]["video"][: dataset.num_frames]
        return self._frames


def _to_tensorboard(callback, picture: Image.Image, step: int) -> None:
    if callback.tb_writer is not None:
        callback.tb_writer.add_image(NAME, np.asarray(picture), step, dataformats="HWC")


def _to_wandb(callback, picture: Image.Image, step: int) -> None:
    import wandb

    if wandb.run is not None:
        wandb.log({NAME: wandb.Image(picture), "train/global_step": step})


def _to_trackio(callback, picture: Image.Image, step: int) -> None:
    import trackio

    trackio.log({NAME: trackio.Image(picture), "train/global_step": step})


_SEND = {TensorBoardCallback: _to_tensorboard, WandbCallback: _to_wandb, TrackioCallback: _to_trackio}
