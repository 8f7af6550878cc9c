"""What the experiments compare, as data: each setting is a name and the fields that it changes.

Fields are flat, as in `SViTTEgoModel.from_encoders`: a bare name is the whole configuration's or the video tower's
(`keep_rate` is q_v), the prefix `fusion_` marks the cross-modal tower's (`fusion_keep_rate` is q_m). Every setting
states all the fields that its experiment varies, so that no default decides a comparison.
"""

from dataclasses import dataclass, field, replace

# (K_l, K_r, G) of the paper's edge pattern. The base tower's 784 tokens are 14 blocks of 56, a quarter of a frame
# and a bit, of which a block attends to 4; the tiny tower's 64 tokens are 16 blocks of 4, a quarter of a frame, of 4.
PAPER_EDGES = {"tiny": (1, 3, 4), "base": (1, 3, 56)}
DEMO_EDGES = (5, 1, 8)  # the demo's before it had temporal edges: its neighbours hold the next frames' same place
PATTERNS = {"tiny": (PAPER_EDGES["tiny"], DEMO_EDGES), "base": (PAPER_EDGES["base"],)}
SWEPT = {
    "tiny": {"num_random_blocks": (1, 3, 7), "block_size": (2, 4, 8), "keep_rate": (0.3, 0.5, 0.7, 0.9)},
    "base": {"num_random_blocks": (1, 3, 5), "block_size": (28, 56, 112), "keep_rate": (0.3, 0.5, 0.7, 0.9)},
}
SWEPT_FUSION = (0.1, 0.3, 0.7, 1.0)
INFERENCE_KEEP_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
LETTERS = {"num_random_blocks": "K_r", "block_size": "G", "keep_rate": "q_v", "fusion_keep_rate": "q_m"}
TITLES = {
    "1": "Dense, edge sparsity, node sparsity, both",
    "2": "EgoNCE, InfoNCE and each half of EgoNCE",
    "3": "Sweep over K_r, G and q_v",
    "3m": "Sweep over q_m, with video-text matching and masked language modelling",
    "4": "Sparsity turned at inference",
    "5": "Temporal edges at 4 frames",
    "5-8": "Temporal edges at 8 frames, after 4",
    "5-16": "Temporal edges at 16 frames, after 4, with verbs that two frames cannot tell apart",
    "6": "Which tokens to keep",
    "7": "Trained dense first, continued sparse",
    "8": "EgoNCE and InfoNCE where verbs and nouns follow Zipf's law, by contrastive batch",
    "8-steps": "EgoNCE and InfoNCE where verbs and nouns follow Zipf's law, by contrastive batch at equal steps",
    "9": "Temporal edges and which tokens to keep, where the head moves during an action",
    "9-long": "Temporal edges where the head moves during an action, trained for longer",
}
TRAINED = tuple(number for number in TITLES if number != "4")  # 4 takes the models of 1
# Settings whose model costs the same in all of them, or is measured in 5 or 6.
SAME_COSTS = ("2", "7", "8", "8-steps", "9", "9-long")
# Fields of WorldStatistics: the synthetic world of these experiments, which differs from the others'.
STATISTICS = {
    "5-16": {"long_verbs": True},
    "8": {"zipf": 1.0},
    "8-steps": {"zipf": 1.0},
    "9": {"head_motion": 10.0},
    "9-long": {"head_motion": 10.0},
}
# Of experiments 6 and 9, in addition to the model's own choice (pruning.py).
PRUNERS = ("random", "motion", "novel", "diverse", "merged")
# contrastive_loss and scene_aware_negatives: EgoNCE, and its two halves alone, of experiments 2, 8 and 8-steps.
LOSSES = {
    "InfoNCE": ("info_nce", False),
    "action-aware positives only": ("ego_nce", False),
    "scene-aware negatives only": ("info_nce", True),
    "EgoNCE": ("ego_nce", True),
}
CONTRASTIVE_BATCHES = (32, 128, 512, 1024)  # of experiments 8 and 8-steps
FRAMES = {"5": 4, "5-8": 8, "5-16": 16}  # of these experiments, whatever --num-frames says
# (K_l, K_t, K_r, G). The tiny tower's are compared at equal numbers of attended blocks, of 16 at 4 frames: as many as
# the paper's pattern, 4, then 5, then 6; or 3 of half a frame.
TEMPORAL_PATTERNS = {
    "tiny": (
        (1, 0, 3, 4),
        (1, 2, 1, 4),
        (3, 0, 1, 4),
        (3, 2, 1, 4),
        (1, 2, 3, 4),
        (1, 4, 1, 4),
        (1, 0, 5, 4),
        (1, 2, 2, 4),
        (1, 4, 0, 4),
        (3, 2, 0, 4),
        (1, 2, 0, 8),
    ),
    "base": ((1, 0, 3, 49), (1, 2, 1, 49), (3, 2, 1, 49), (1, 4, 1, 49)),
}
# From 8 frames on, a model from scratch needs far more steps than these to learn the order of frames, dense or not. So
# it is trained in stages, as in SViTT (section 3.4), of which the last begins after this share of the steps.
FIRST_FRAMES, LAST_STAGE = 4, 0.7
# (K_l, K_t, K_r, G) at the first number of frames and at the last: the paper's pattern, as many random blocks as the
# last pattern has blocks, temporal blocks one frame away, and temporal blocks that span the clip.
STAGED_PATTERNS = {
    "tiny": {
        "5-8": (
            ((1, 0, 3, 4), (1, 0, 3, 4)),
            ((1, 0, 3, 4), (1, 0, 9, 4)),
            ((3, 2, 1, 4), (3, 2, 1, 4)),
            ((3, 2, 1, 4), (3, 6, 1, 4)),
        ),
        "5-16": (
            ((1, 0, 3, 4), (1, 0, 3, 4)),
            ((1, 0, 3, 4), (1, 0, 11, 4)),
            ((3, 2, 1, 4), (3, 2, 1, 4)),
            ((3, 2, 1, 4), (3, 8, 1, 4)),
        ),
    },
    "base": {
        "5-8": (((1, 0, 3, 49), (1, 0, 3, 49)), ((3, 2, 1, 49), (3, 6, 1, 49))),
        "5-16": (((1, 0, 3, 49), (1, 0, 3, 49)), ((3, 2, 1, 49), (3, 8, 1, 49))),
    },
}


@dataclass(frozen=True)
class Setting:
    """
    Args:
        name (`str`): as in the tables.
        fields (`dict`): configuration fields.
        arguments (`dict`): fields of `SViTTEgoTrainingArguments`.
        fusion (`bool`): train matching and masked language modelling too, and answer by the matching head as well.
        attention (`str`, *optional*): the video tower's attention implementation, where costs are measured.
        pruner (`str`, *optional*): one of `PRUNERS` instead of the model's own choice of tokens.
        first (`dict`, *optional*): fields of a model that is trained before, for as many steps; this one continues it.
        clips_per_step (`int`, *optional*): contrastive batch; there are as many fewer steps as it is larger than the
            budget's, so that all settings see the same number of clips.
        equal_steps (`bool`, *optional*): with `clips_per_step`, take all steps of the budget instead.
    """

    name: str
    fields: dict
    arguments: dict = field(default_factory=dict)
    fusion: bool = False
    attention: str | None = None
    pruner: str | None = None
    first: dict | None = None
    clips_per_step: int | None = None
    equal_steps: bool | None = None

    def more(self) -> dict:
        """What decides a result beyond fields, arguments and fusion, where it is given."""
        names = ("pruner", "first", "clips_per_step", "equal_steps")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def edges(pattern: tuple[int, ...] | None) -> dict:
    """Fields of an edge pattern (K_l, K_r, G) or (K_l, K_t, K_r, G); None is dense attention."""
    if pattern is None:
        return {"num_random_blocks": None}
    names = ["num_local_blocks", "num_random_blocks", "block_size"]
    if len(pattern) == 4:
        names.insert(1, "num_temporal_blocks")
    return dict(zip(names, pattern))


def staged(
    first: tuple[int, ...] | None, last: tuple[int, ...] | None, num_frames: int, keep_rate: float, by_motion: bool
) -> Setting:
    """
    Trained with the pattern `first` at `FIRST_FRAMES`, then with `last` at `num_frames`; None is dense.

    Args:
        by_motion (`bool`): tokens are kept by `keep_strategy="motion"`.
    """
    stages = []
    for start, frames, pattern in ((0.0, FIRST_FRAMES, first), (LAST_STAGE, num_frames, last)):
        _, temporal, random, _ = (0, 0, "dense", 0) if pattern is None else pattern
        stages.append(f"{start}:{frames}:{keep_rate}:{random}:{temporal}")
    name = "dense" if last is None else f"edges {last}"
    return Setting(
        name + ("" if keep_rate == 1.0 else f", nodes {keep_rate}") + (" by motion" if by_motion else ""),
        # The costs are those of the last pattern; the training sets each stage's.
        {**edges(last), "keep_rate": keep_rate, **({"keep_strategy": "motion"} if by_motion else {})},
        {"temporal_stages": ",".join(stages)},
    )


def measured_settings(experiment: str, scale: str) -> list[Setting]:
    """Whose costs are measured: what is trained, and in experiment 1 dense attention as it is usually written."""
    settings = settings_of(experiment, scale)
    if experiment == "1":
        settings.append(replace(settings[0], name="dense, keeping all probabilities (eager)", attention="eager"))
    return settings


def settings_of(experiment: str, scale: str) -> list[Setting]:
    """
    The settings that an experiment trains; the first is what the others are compared with.

    Args:
        experiment (`str`): one of `TRAINED`.
        scale (`str`): `"tiny"`, the demo's model from scratch, or `"base"`, which continues BEiT and BERT.
    """
    paper = edges(PAPER_EDGES[scale])
    both = {**paper, "keep_rate": 0.7}
    # Losses are compared on a sparse model that learns the order of frames: the last pattern.
    learner = {**edges(PATTERNS[scale][-1]), "keep_rate": 0.7}
    if experiment == "1":
        patterns = {"": PAPER_EDGES[scale]} | ({" of the demo": DEMO_EDGES} if scale == "tiny" else {})
        settings = [Setting("dense", {**edges(None), "keep_rate": 1.0})]
        settings += [Setting(f"edge{name} {p}", {**edges(p), "keep_rate": 1.0}) for name, p in patterns.items()]
        settings += [Setting("node 0.7", {**edges(None), "keep_rate": 0.7})]
        settings += [Setting(f"both{name} {p}, 0.7", {**edges(p), "keep_rate": 0.7}) for name, p in patterns.items()]
        return settings
    if experiment == "2":
        return [
            Setting(name, {**learner, "contrastive_loss": loss}, {"scene_aware_negatives": scenes})
            for name, (loss, scenes) in LOSSES.items()
        ]
    if experiment == "3":
        result = [Setting(f"both {PAPER_EDGES[scale]}, 0.7", both)]
        for name, values in SWEPT[scale].items():
            result += [
                Setting(f"{LETTERS[name]} = {value}", both | {name: value}) for value in values if value != both[name]
            ]
        return result
    if experiment == "3m":
        # The tiny demo has one fusion layer, after which there is none to see fewer tokens: the paper has three.
        layers = {"fusion_num_hidden_layers": 3, "fusion_prune_layers": [0]}
        return [
            Setting(f"q_m = {rate}", {**learner, **layers, "fusion_keep_rate": rate}, fusion=True)
            for rate in reversed(SWEPT_FUSION)
        ]
    if experiment in STAGED_PATTERNS[scale]:
        return [
            staged(first, last, FRAMES[experiment], keep_rate, by_motion)
            for first, last in ((None, None), *STAGED_PATTERNS[scale][experiment])
            for keep_rate, by_motion in ((1.0, False), (0.7, False), (0.7, True))
        ]
    if experiment == "5":
        named = {"dense": None} | {f"edges {pattern}": pattern for pattern in TEMPORAL_PATTERNS[scale]}
        return [
            Setting(f"{name}{suffix}", {**edges(pattern), "keep_rate": rate})
            for name, pattern in named.items()
            for suffix, rate in (("", 1.0), (", nodes 0.7", 0.7))
        ]
    dense = {**edges(None), "keep_rate": 1.0}
    temporal = TEMPORAL_PATTERNS[scale][3 if scale == "tiny" else 2]  # with local neighbours
    if experiment == "9":
        patterns = (TEMPORAL_PATTERNS[scale][0], temporal, TEMPORAL_PATTERNS[scale][-1])
        return [
            Setting("dense", dense),
            *(Setting(f"edges {pattern}", {**edges(pattern), "keep_rate": 1.0}) for pattern in patterns),
            *settings_of("6", scale)[1:],
        ]
    if experiment == "9-long":
        by_motion = {"keep_rate": 0.7, "keep_strategy": "motion"}
        return [
            *settings_of("9", scale)[:4],
            Setting("dense, nodes 0.7 by motion", dense | by_motion),
            Setting(f"edges {temporal}, nodes 0.7", {**edges(temporal), "keep_rate": 0.7}),
            Setting(f"edges {temporal}, nodes 0.7 by motion", {**edges(temporal), **by_motion}),
        ]
    if experiment == "6":
        return [Setting("every token", dense)] + [
            Setting(
                f"q_v = {rate}, {pruner or 'by the attention of [CLS]'}", dense | {"keep_rate": rate}, pruner=pruner
            )
            for rate in (0.7, 0.5, 0.3)
            for pruner in (None, *PRUNERS)
        ]
    if experiment == "7":
        patterns = {"dense": None, f"edges {TEMPORAL_PATTERNS[scale][0]}": TEMPORAL_PATTERNS[scale][0]}
        patterns[f"edges {temporal}"] = temporal
        return [
            Setting(f"dense, then {name}{suffix}", {**edges(pattern), "keep_rate": rate}, first=dense)
            for suffix, rate in (("", 1.0), (", nodes 0.7", 0.7))
            for name, pattern in patterns.items()
        ]
    if experiment in ("8", "8-steps"):
        fields = {**edges(temporal), "keep_rate": 0.7}
        return [
            Setting(
                f"{name}, {batch} clips",
                {**fields, "contrastive_loss": loss},
                {"scene_aware_negatives": scenes},
                clips_per_step=batch,
                equal_steps=True if experiment == "8-steps" else None,
            )
            for batch in CONTRASTIVE_BATCHES
            for name, (loss, scenes) in LOSSES.items()
        ]
    raise ValueError(f"experiment ({experiment!r}) must be one of {', '.join(TRAINED)}.")
