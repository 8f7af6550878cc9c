"""Parts of benchmarks/experiments.py: what is compared (plan), data, training, costs, inference, records, report."""
