"""Pretrain SViTT-Ego on EgoClip with the published recipe as defaults (arXiv:2406.09462; SViTT, arXiv:2304.08809).

    python examples/pretrain_egoclip.py --egoclip egoclip.csv --videos VIDEO_ROOT \
        --egomcq egomcq.json --egomcq_videos MCQ_ROOT --eval_strategy steps --output_dir runs/egoclip --bf16

The same as `svitt-ego pretrain …`. It starts from BEiT and BERT; `--model FOLDER` starts from a saved model, such as a
converted release, `--from_scratch svitt-ego-tiny` from random weights. On several devices:

    torchrun --nproc_per_node 8 examples/pretrain_egoclip.py …
    accelerate launch --config_file examples/fsdp.yaml examples/pretrain_egoclip.py …

With little memory add `--contrastive_batch_size 1024 --per_device_train_batch_size 8`: loss and gradients stay those
of the large batch. After a kill or Ctrl-C, the same command with `--resume` continues. Every argument of
`transformers.TrainingArguments` works; `--help` lists them.
"""

from modeling_svitt_ego.commands.running import run_script
from modeling_svitt_ego.training.pretraining import Recipe, main

__all__ = ["Recipe", "main"]

if __name__ == "__main__":
    run_script(main, "checkpoints are kept; the same command with --resume continues from the newest one")
