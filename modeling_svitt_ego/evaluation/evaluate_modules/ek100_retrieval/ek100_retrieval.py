"""For `evaluate.load`: the metric itself is in the package."""

from modeling_svitt_ego.evaluation.metric_modules import EK100Retrieval  # noqa: F401
