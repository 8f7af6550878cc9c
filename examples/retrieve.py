"""Finds the clips of a folder that fit a sentence best: embed the clips once, embed the sentence, compare by cosine.

    python examples/retrieve.py --model svitt-ego-demo/model --videos my_clips "#C C opens the box"

For moments in long videos use `svitt-ego search` or `VideoIndex`, which also keep the embeddings on disk.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sentence", help="what to look for, as a narration")
parser.add_argument("--model", required=True, help="folder or Hub name of a SViTT-Ego model")
parser.add_argument("--videos", required=True, type=Path, help="folder of .mp4 clips of a few seconds each")
parser.add_argument("--top-k", type=int, default=5, help="how many clips to print (default: %(default)s)")
arguments = parser.parse_args()

paths = sorted(arguments.videos.glob("*.mp4"))
if not paths:
    parser.error(f"There is no .mp4 file in {arguments.videos}.")

# 1. The model and its processor.
model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)

# 2. One embedding per clip; a batch holds eight clips.
embeddings = []
for start in range(0, len(paths), 8):
    clips = processor(videos=[str(path) for path in paths[start : start + 8]], return_tensors="pt")
    with torch.no_grad():
        embeddings.append(model.get_video_features(**clips).pooler_output)
videos = torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)  # (num_clips, projection_dim)

# 3. The embedding of the sentence, and the cosine with every clip.
text = processor(text=[arguments.sentence], return_tensors="pt")
with torch.no_grad():
    sentence = torch.nn.functional.normalize(model.get_text_features(**text).pooler_output, dim=-1)
cosines = (videos @ sentence.T)[:, 0]

# 4. The best clips first.
best = cosines.topk(min(arguments.top_k, len(paths)))
for cosine, index in zip(best.values.tolist(), best.indices.tolist()):
    print(f"{cosine:7.3f}  {paths[index]}")
