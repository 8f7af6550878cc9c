"""Muon for the weight matrices of the layers and AdamW for the rest, as one optimizer.

Muon (muon.py) makes the update of a matrix orthogonal: its weak directions learn as fast as its strong ones. Trained
from scratch, the tiny model learns the order of frames with it in a tenth of the clips that AdamW needs. The published
recipe, which starts from BEiT and BERT, is AdamW alone, and that is the default.
"""

import torch
from torch import nn

from .muon import Muon


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable 2-D weights of the linear maps in the towers' layers and projections.

    The embeddings, the bias tables, the patch projection and the heads are excluded: their rows mean different things.
    """
    names = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (".layers." in f".{name}" or name.endswith("projection"))
    ]
    return [parameter for name in names if (parameter := model.get_parameter(name)).requires_grad]


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Args:
        matrices: parameters for [`Muon`], each 2-D.
        groups: parameter groups (dicts with `params`, `weight_decay`) for `torch.optim.AdamW`; the matrices are taken
            out of them and keep their weight decay.
        muon_learning_rate (`float`): Muon's, in AdamW's units: an update has the root mean square that AdamW's would
            have ("match_rms_adamw").
        learning_rate (`float`): AdamW's.
        adam_kwargs: betas and eps of AdamW.

    It has one list of groups and one state dict: schedulers, clipping and checkpoints see a single optimizer.
    """

    def __init__(self, matrices, groups, muon_learning_rate: float, learning_rate: float, **adam_kwargs):
        chosen = {id(parameter) for parameter in matrices}
        muon_groups, adam_groups = [], []
        for group in groups:
            taken = [parameter for parameter in group["params"] if id(parameter) in chosen]
            rest = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            if taken:
                muon_groups.append({**group, "params": taken, "lr": muon_learning_rate})
            if rest:
                adam_groups.append({**group, "params": rest})
        if not muon_groups or not adam_groups:
            raise ValueError(
                f"{sum(len(g['params']) for g in muon_groups)} matrices for Muon and "
                f"{sum(len(g['params']) for g in adam_groups)} other parameters for AdamW: use one optimizer alone."
            )
        self._muon = Muon(muon_groups, lr=muon_learning_rate)
        self._adamw = torch.optim.AdamW(adam_groups, lr=learning_rate, **adam_kwargs)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a checkpoint replaces the lists and dicts: the parts take the current ones.
        self._muon.param_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()
        return loss
