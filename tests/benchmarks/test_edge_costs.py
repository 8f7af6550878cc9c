"""benchmarks/edge_costs.py: the numbers of its table, on a small tower."""

import importlib

import pytest

from modeling_svitt_ego.model.sparsity import temporal_distances

edge_costs = importlib.import_module("edge_costs")
SMALL = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
SMALL |= {"prune_layers": [0]}


@pytest.fixture(scope="module")
def rows():
    return {name: edge_costs.cost(fields, 4, SMALL) for name, fields in edge_costs.settings(4).items()}


def test_attended_keys_are_those_of_the_pattern(rows):
    """Catches temporal blocks that are not counted."""
    attended = {name: row["attended_keys"] for name, row in rows.items() if ";" not in name}
    assert list(attended.values()) == [784, 4 * 56, 4 * 49, 6 * 49, 6 * 49]
    assert all(row["tokens"] == 784 for row in rows.values())


def test_flops_differ_by_the_pairs_that_are_not_computed(rows):
    """Catches attention that computes other pairs than the pattern lists: both layers, scores and context."""
    dense, paper, temporal, wider, spanning = (row["forward_flops"] for name, row in rows.items() if ";" not in name)
    per_key = 2 * 784 * 24 * 2 * 2  # layers, queries, width, a multiply-add each for scores and for context
    assert dense - paper == per_key * (784 - 4 * 56)
    assert paper - temporal == per_key * (4 * 56 - 4 * 49)
    assert wider - temporal == per_key * 2 * 49
    assert spanning == wider  # at 4 frames
    for name in [name for name in rows if ";" not in name]:
        assert rows[f"{name}; nodes 0.7"]["forward_flops"] < rows[name]["forward_flops"]


def test_spanning_blocks_reach_half_of_the_clip():
    """Catches a number of blocks of which some are replaced by random ones, or that leaves half a clip unseen."""
    for frames, temporal in edge_costs.SPANNING.items():
        distances = temporal_distances(frames, temporal // 2)
        assert max(distances) == (1 if frames == 4 else frames // 2)
        assert distances == [2**step for step in range(len(distances))]


def test_the_table_has_a_row_for_each_pattern_and_states_both_units(rows):
    listed = [{"setting": name, "num_frames": 4, **row} for name, row in rows.items()]
    lines = edge_costs.table(listed).splitlines()
    assert lines[0] == "| | 4 frames |"
    assert len(lines) == 2 + len(rows)
    assert "GFLOP (1.00)" in lines[2] and lines[2].endswith("MB |")
