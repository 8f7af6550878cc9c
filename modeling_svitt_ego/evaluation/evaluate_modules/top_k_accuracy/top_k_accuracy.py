"""For `evaluate.load`: the metric itself is in the package."""

from modeling_svitt_ego.evaluation.metric_modules import TopKAccuracy  # noqa: F401
