"""Numbers that others published, to stand beside own ones and never among them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedResult:
    """
    Args:
        metrics (`dict[str, float]`): per cent, by the names of this package's metrics.
        protocol (`str`): what the publication says of frames and scoring mode.
    """

    benchmark: str
    model: str
    metrics: dict[str, float]
    protocol: str
    source: str


def _egomcq(model: str, inter: float, intra: float, protocol: str, source: str) -> PublishedResult:
    return PublishedResult("egomcq", model, {"inter": inter, "intra": intra}, protocol, source)


def _ek100(model: str, mean_ap: float, ndcg: float, source: str) -> PublishedResult:
    return PublishedResult("ek100", model, {"map": mean_ap, "ndcg": ndcg}, "zero-shot", source)


def _egonlq(model: str, recalls: tuple[float, float, float, float], source: str) -> PublishedResult:
    names = ("r1_iou0.3", "r1_iou0.5", "r5_iou0.3", "r5_iou0.5")
    return PublishedResult("egonlq", model, dict(zip(names, recalls)), "v1 validation, trained VSLNet", source)


PUBLISHED = (
    _egomcq("SViTT-Ego", 92.9, 65.9, "scoring mode and frames not said", "arXiv:2406.09462"),
    _egomcq("EgoVLP", 90.6, 57.2, "dual encoder", "arXiv:2206.01670"),
    _egomcq("EgoVLPv2", 91.0, 60.9, "ensemble, 16 frames", "arXiv:2307.05463"),
    _egomcq("LaViLa-B", 93.8, 59.9, "35 M texts", "arXiv:2212.04501"),
    _egomcq("LaViLa-L", 94.5, 63.1, "35 M texts", "arXiv:2212.04501"),
    _egomcq("AVION-B", 94.5, 61.4, "35 M texts", "arXiv:2309.16669"),
    _egomcq("AVION-L", 95.4, 64.5, "35 M texts", "arXiv:2309.16669"),
    _egonlq("VSLNet on EgoVLP", (10.84, 6.81, 18.84, 13.45), "arXiv:2206.01670"),
    _egonlq("VSLNet on EgoVLPv2", (12.95, 7.91, 23.80, 16.11), "arXiv:2307.05463"),
    _ek100("random scores", 5.7, 10.9, "official evaluator, mean of both directions"),
    _ek100("EgoVLP", 16.6, 23.1, "arXiv:2206.01670"),
    _ek100("EgoVLPv2", 26.7, 29.1, "arXiv:2307.05463"),
    _ek100("LaViLa-B", 30.9, 32.0, "arXiv:2212.04501"),
    _ek100("LaViLa-L", 36.1, 34.6, "arXiv:2212.04501"),
    _ek100("AVION-B", 32.9, 32.7, "arXiv:2309.16669"),
    _ek100("AVION-L", 37.6, 35.3, "arXiv:2309.16669"),
)
