"""Leaving a run after SIGTERM or Ctrl-C: the step is finished, a checkpoint saved, and the exit status says why.

The Trainer's own just-in-time checkpoint (`enable_jit_checkpoint`) saves between the backward and the update of a
step, from where a run does not continue bit for bit. Here the checkpoint is always saved after a whole step.
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
    On SIGTERM or SIGINT: finish the step, save a checkpoint, print one line, exit with 128 + the signal's number.

    With several processes all of them leave after the same step, also if the signal reached only one. A second Ctrl-C
    leaves at once, without a checkpoint.
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.received = self.leaving = 0  # numbers of signals; 0 is none
        self.previous: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread() and not self.previous:  # elsewhere Python refuses
            # One that is ignored stays so: a shell's background job is not meant to hear its terminal's Ctrl-C.
            heard = [number for number in _NAMES if signal.getsignal(number) is not signal.SIG_IGN]
            self.previous = {number: signal.signal(number, self.note) for number in heard}

    def note(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.received:
            self.restore()
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGINT and self.trainer.is_world_process_zero():
            # os.write, because a signal may arrive while sys.stderr is being written to.
            os.write(2, b"\nCtrl-C: finishing this step and saving a checkpoint. Once more to leave without saving.\n")

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        self.leaving = self.received
        if accelerator.num_processes > 1:
            everyone = accelerator.gather(torch.tensor([self.received], device=accelerator.device))
            self.leaving = int(everyone.max())
        if self.leaving:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
        if not self.leaving:
            return
        if self.trainer.is_world_process_zero():
            print(
                f"{_NAMES[self.leaving]}: step {state.global_step} of {state.max_steps} is saved in "
                f"{Path(args.output_dir) / f'{PREFIX_CHECKPOINT_DIR}-{state.global_step}'}; leaving. "
                "The same command with --resume continues with the next step.",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(128 + self.leaving)

    def restore(self) -> None:
        """Puts back the handlers from before the training; also called after an error."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
