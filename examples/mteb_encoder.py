"""Scores a model on tasks of mteb (MVEB's tasks of video and text among them): its `ModelMeta` and its encoder.

    pip install "mteb[video]"
    python examples/mteb_encoder.py --model svitt-ego-demo/model --tasks MSRVTTT2V EPICKitchens100ClusteringMini

mteb downloads the data of the tasks. In Python: `mteb.evaluate(model_meta("svitt-ego-demo/model"), tasks)`.
"""

import argparse
from functools import partial
from pathlib import Path

import mteb
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoProcessor


class SViTTEgoEncoder(AbsEncoder):
    """
    A dual encoder as mteb calls it: batches of texts, of videos, or of both become one vector each.

    Args:
        name: The name in the results of mteb, which calls the loader with it.
        revision: The revision on the Hub.
        device: Where to compute; a GPU where there is one.
        folder: Folder or Hub name of the model; `name` by default.
    """

    def __init__(self, name: str, revision: str | None = None, device: str | None = None, folder: str | None = None):
        source = {"pretrained_model_name_or_path": folder or name, "revision": revision, "trust_remote_code": True}
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModel.from_pretrained(**source).eval().to(self.device)
        self.processor = AutoProcessor.from_pretrained(**source)

    @torch.inference_mode()
    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **options) -> torch.Tensor:
        """
        Unit vectors of shape `(num_inputs, projection_dim)`. An input of a video and a text, as in composed retrieval,
        is the sum of both, which is what mteb's other dual encoders do. There are no prompts.
        """
        return torch.cat([self._encode_batch(batch) for batch in inputs])

    def _encode_batch(self, batch: dict) -> torch.Tensor:
        vectors = []
        if "text" in batch:
            texts = self.processor(text=list(batch["text"]), return_tensors="pt").to(self.device)
            vectors.append(self.model.get_text_features(**texts).pooler_output)
        if "video" in batch:  # torchcodec's VideoDecoder, from a `datasets.Video` column
            clips = self.processor(videos=batch["video"], return_tensors="pt").to(self.device)
            vectors.append(self.model.get_video_features(**clips).pooler_output)
        if not vectors:
            raise ValueError(f"SViTT-Ego encodes text and video; this task gives {sorted(batch)}.")
        return normalize(sum(normalize(x, dim=-1) for x in vectors), dim=-1).cpu()


def model_meta(model: str, revision: str | None = None) -> ModelMeta:
    """What mteb must know about a model: a folder, or a Hub name with its revision."""
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=True)
    with torch.device("meta"):
        size = AutoModel.from_config(config, trust_remote_code=True)
    folder = Path(model)
    return ModelMeta(
        loader=partial(SViTTEgoEncoder, folder=model) if folder.is_dir() else SViTTEgoEncoder,
        name=f"local/{folder.resolve().name}" if folder.is_dir() else model,
        revision=revision,
        release_date=None,
        languages=["eng-Latn"],
        n_parameters=size.num_parameters(),
        n_embedding_parameters=size.get_input_embeddings().weight.numel(),
        memory_usage_mb=round(size.num_parameters() * 4 / 2**20),
        max_tokens=config.text_config.max_position_embeddings,
        embed_dim=config.projection_dim,
        license="apache-2.0",
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        training_datasets=None,  # not known here: name what your weights were trained on
        framework=["PyTorch", "Transformers"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        modalities=["video", "text"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a SViTT-Ego model")
    parser.add_argument("--revision", help="revision on the Hub")
    parser.add_argument("--tasks", required=True, nargs="+", help="names of mteb tasks of video and text")
    parser.add_argument("--batch-size", type=int, default=8, help="inputs at a time (default: %(default)s)")
    arguments = parser.parse_args()
    results = mteb.evaluate(
        model_meta(arguments.model, arguments.revision),
        mteb.get_tasks(tasks=arguments.tasks),
        encode_kwargs={"batch_size": arguments.batch_size},
    )
    for result in results.task_results:
        print(f"{result.task_name}: {result.get_score():.4f}")


if __name__ == "__main__":
    main()
