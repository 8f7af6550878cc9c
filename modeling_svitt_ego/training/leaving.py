"""Leaving a run after SIGTERM or Ctrl-C: the step is finished, a checkpoint is saved, and the exit status says why.

The just-in-time checkpoint of the Trainer (`enable_jit_checkpoint`) is saved between the backward and the update of a
step, and a run that resumes from it is not bit-equal. Here the checkpoint is always saved after a whole step.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class LeaveOnSignal(TrainerCallback):
    """
    On SIGTERM or SIGINT: finishes the step, saves a checkpoint, prints one line, and exits with 128 + the number of
    the signal.

    Several processes all leave after the same step, even if the signal reached only one. A second Ctrl-C leaves at
    once, without a checkpoint. The line ends with `trainer.resume_hint`; where that is `None`, the run cannot be
    resumed, and no checkpoint is saved.
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.pid = os.getpid()
        self.received = self.leaving = 0  # numbers of signals; 0 is none
        self.previous: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread() and not self.previous:  # elsewhere Python refuses
            # An ignored signal stays ignored: a background job of a shell must not react to Ctrl-C in its terminal.
            heard = [number for number in _NAMES if signal.getsignal(number) is not signal.SIG_IGN]
            self.previous = {number: signal.signal(number, self.note) for number in heard}

    def note(self, number: int, frame) -> None:
        if os.getpid() != self.pid:  # a forked worker process inherits this handler
            return
        if number == signal.SIGINT and self.received:
            self.restore()
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGINT and self.trainer.is_world_process_zero():
            saves = self.trainer.resume_hint is not None
            line = "and saving a checkpoint. Press it again to leave without saving." if saves else "before leaving."
            # os.write, because a signal may arrive while sys.stderr is being written to.
            os.write(2, f"\nCtrl-C: finishing this step {line}\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        self.leaving = self.received
        if accelerator.num_processes > 1:
            everyone = accelerator.gather(torch.tensor([self.received], device=accelerator.device))
            self.leaving = int(everyone.max())
        if self.leaving:
            control.should_training_stop = True
            control.should_save |= self.trainer.resume_hint is not None

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
        if not self.leaving:
            return
        if self.trainer.is_world_process_zero():
            done = f"{_NAMES[self.leaving]}: left after step {state.global_step} of {state.max_steps}"
            saved = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            hint = self.trainer.resume_hint
            rest = ". Nothing was saved." if hint is None else f", which is saved in {saved}. {hint}"
            print(f"{done}{rest}", file=sys.stderr, flush=True)
        raise SystemExit(128 + self.leaving)

    def restore(self) -> None:
        """Restores the signal handlers from before the training; also called after an error."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
