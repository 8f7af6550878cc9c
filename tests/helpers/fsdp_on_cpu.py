"""Runs a script in processes on the CPU that accelerate shards over with FSDP 2, and says so.

`accelerate launch --config_file examples/fsdp.yaml … fsdp_on_cpu.py SCRIPT ARGUMENTS …`. By itself accelerate takes
processes on the CPU for DDP's (`DistributedType.MULTI_CPU`), without a word; here it takes them for devices.
"""

import runpy
import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState

_init = PartialState.__init__


def init(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = init
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"ran as {AcceleratorState().distributed_type} on {AcceleratorState().device.type}")
