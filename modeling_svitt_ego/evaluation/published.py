"""Numbers that others published, with their conditions and sources. They are always marked as published.

Only rows with equal conditions can be compared: zero-shot and fine-tuned results, dual encoders and models that see
video and text together, and versions of the annotations are different measurements.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedResult:
    """
    Args:
        metrics (`dict[str, float]`): per cent, by the names of this package's metrics.
        protocol (`str`): what the publication says of data, frames and scoring mode.
        source (`str`): where it was published.
    """

    benchmark: str
    model: str
    metrics: dict[str, float]
    protocol: str
    source: str


def _egomcq(model: str, inter: float, intra: float, protocol: str, source: str) -> PublishedResult:
    return PublishedResult("egomcq", model, {"inter": inter, "intra": intra}, protocol, source)


def _ek100(model: str, mean_ap: float, ndcg: float, source: str, protocol: str = "zero-shot") -> PublishedResult:
    return PublishedResult("ek100", model, {"map": mean_ap, "ndcg": ndcg}, protocol, source)


def _egonlq(model: str, recalls: tuple[float, ...], protocol: str, source: str) -> PublishedResult:
    """`recalls`: R@1 at IoU 0.3 and 0.5, then, where they are published, R@5 at both."""
    names = ("r1_iou0.3", "r1_iou0.5", "r5_iou0.3", "r5_iou0.5")
    return PublishedResult("egonlq", model, dict(zip(names, recalls)), protocol, source)


_LAVILA, _AVION, _EVA02 = "arXiv:2212.04501", "arXiv:2309.16669", "arXiv:2506.14356"
_EGOVLP, _EGOVLPV2 = "arXiv:2206.01670", "arXiv:2307.05463"
_EGOHOD = "arXiv:2503.00986"
_TUNED = "fine-tuned, dual encoder"
_TOGETHER = "fine-tuned, video and text seen together at test time"

PUBLISHED = (
    _egomcq("SViTT-Ego", 92.9, 65.9, "scoring mode and frames not said", "arXiv:2406.09462"),
    _egomcq("EgoVLP", 90.6, 57.2, "dual encoder", _EGOVLP),
    _egomcq("EgoVLPv2", 91.0, 60.9, "ensemble, 16 frames", _EGOVLPV2),
    _egomcq("GLEN", 91.2, 56.2, "conditions not checked here", "GLEN's paper"),
    _egomcq("LaViLa-B", 93.8, 59.9, "35 M texts", _LAVILA),
    _egomcq("LaViLa-L", 94.5, 63.1, "35 M texts", _LAVILA),
    _egomcq("AVION-B", 94.5, 61.4, "35 M texts", _AVION),
    _egomcq("AVION-L", 95.4, 64.5, "35 M texts", _AVION),
    _egomcq("EgoHOD, EgoVideo-L", 95.9, 65.5, "conditions not checked here", _EGOHOD),
    _egomcq("EVA02-AT-L", 96.2, 66.0, "dual encoder", _EVA02),
    _egonlq("VSLNet on EgoVLP", (10.84, 6.81, 18.84, 13.45), "v1 validation, trained head", _EGOVLP),
    _egonlq("VSLNet on EgoVLPv2", (12.95, 7.91, 23.80, 16.11), "v1 validation, trained head", _EGOVLPV2),
    _egonlq("GroundNLQ", (26.98, 18.83), "v2 validation, trained head", "arXiv:2306.15255"),
    _egonlq("on EgoVideo features", (28.65, 19.73), "v2 validation, trained head", "arXiv:2406.18070"),
    _egonlq("OSGNet", (32.56, 22.74), "v2 validation, trained head", "arXiv:2505.04270"),
    _ek100("random scores", 5.7, 10.9, "official evaluator, mean of both directions"),
    _ek100("EgoVLP", 16.6, 23.1, _EGOVLP),
    _ek100("EgoVLPv2", 26.7, 29.1, _EGOVLPV2),
    _ek100("LaViLa-B", 30.9, 32.0, _LAVILA),
    _ek100("LaViLa-L", 36.1, 34.6, _LAVILA),
    _ek100("AVION-B", 32.9, 32.7, _AVION),
    _ek100("AVION-L", 37.6, 35.3, _AVION),
    _ek100("EVA02-AT-L + SMS", 38.9, 36.2, _EVA02),
    PublishedResult("ek100", "EgoHOD-L", {"map": 41.8}, "zero-shot", _EGOHOD),
    _ek100("EgoVideo", 45.9, 38.6, "arXiv:2406.18070"),
    _ek100("EgoVLPv2", 47.3, 61.9, _EGOVLPV2, _TUNED),
    _ek100("LaViLa-L", 50.9, 66.5, _LAVILA, _TUNED),
    _ek100("AVION-L", 54.5, 69.0, _AVION, _TUNED),
    _ek100("EVA02-AT-L + SMS", 63.5, 74.2, _EVA02, _TUNED),
    _ek100("CR-CLIP", 66.8, 82.1, "arXiv:2506.10550", _TOGETHER),
    _ek100("TempRet", 68.0, 82.9, "arXiv:2605.24470", f"{_TOGETHER}: top candidates re-ranked"),
)
