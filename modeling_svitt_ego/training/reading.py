"""The training batches: which clips, by which worker processes, and how a failure in one of them is reported."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.utils.data import Dataset

from ..data.clips import EgoClipDataset
from ..data.failures import TooManyClipFailures
from ..data.sampling import SceneAwareBatchSampler, SceneIndex, SeededBatchSampler, SharedNounBatchSampler
from ..model.clip_reading import ClipReadError


def make_batch_sampler(dataset: EgoClipDataset, args, batch_size: int, **common) -> SeededBatchSampler:
    """
    The sampler that the arguments request. The data set also receives the scenes, so that an unreadable clip is
    replaced by one of the same scene.

    Args:
        args ([`SViTTEgoTrainingArguments`]).
        batch_size (`int`): rows per batch.
        common: further arguments of the sampler.
    """
    common["seed"] = args.seed if args.data_seed is None else args.data_seed
    if args.scene_aware_negatives:
        dataset.scenes = SceneIndex(dataset.table, args.scene_seconds)
        return SceneAwareBatchSampler(dataset.scenes, batch_size, follow=dataset, **common)
    if args.shared_noun_share > 0:
        return SharedNounBatchSampler(
            dataset.table, batch_size, share=args.shared_noun_share, follow=dataset, **common
        )
    return SeededBatchSampler(len(dataset), batch_size, follow=dataset, **common)


@dataclass
class ReadingFailed:
    """Replaces an example, and then its batch, on the way from a worker to the main process."""

    error: Exception


class CarriesFailures(Dataset):
    """The examples of another data set; an error that concerns a clip is returned instead of raised.

    A worker that raises sends its traceback as text, and several workers send several.
    """

    def __init__(self, dataset: EgoClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict | ReadingFailed:
        try:
            return self.dataset[index]
        except (ClipReadError, OSError, TooManyClipFailures) as error:
            return ReadingFailed(error)


def readable_batches(batches: Iterator, step: Callable[[], int]) -> Iterator:
    """
    The batches of the loader, as long as they can be read.

    Raises:
        ClipReadError, OSError, TooManyClipFailures: of the clip at fault, without the worker's traceback.
        RuntimeError: A worker process died; the message says at which step, and what to do.
    """
    try:
        for batch in batches:
            if isinstance(batch, ReadingFailed):
                raise batch.error from None
            yield batch
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise RuntimeError(
            f"A process that decodes clips died while step {step()} was being read: {error}. "
            "Killed by signal 9, it usually ran out of memory: use fewer dataloader_num_workers, a smaller "
            "dataloader_prefetch_factor or smaller micro-batches. Resume from the last checkpoint."
        ) from error
