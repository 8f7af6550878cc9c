"""torch's Muon, which iterates in float32 on a CPU.

Muon (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) replaces the update of a
matrix by the nearest orthogonal one, up to its singular values, which end between about 0.5 and 1.5.
"""

import torch


class Muon(torch.optim.Muon):
    """
    `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`: groups, state and checkpoints are the same, and only the
    precision of the iteration differs.

    torch iterates in bfloat16 on every device. A CPU without instructions for bfloat16 emulates it, which took more
    than half of a training step of the tiny model, and a CPU with them rounds differently, so that the same command
    trained another model. Here a CPU iterates in float32 and other devices in bfloat16.
    """

    def __init__(self, params, lr: float, **arguments):
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw", **arguments)

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters; a closure is evaluated by [`MuonWithAdamW`]."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        average = state["momentum_buffer"]
        average.lerp_(parameter.grad, 1 - group["momentum"])
        update = parameter.grad.lerp(average, group["momentum"]) if group["nesterov"] else average
        update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(parameter.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-rate)


def orthogonalize(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """
    The matrix with its singular values moved near to 1 by a quintic Newton-Schulz iteration.

    Args:
        matrix (`torch.Tensor` of shape `(rows, columns)`).
        coefficients (`tuple[float, float, float]`): a, b and c of aX + b(XXᵀ)X + c(XXᵀ)²X.
        steps (`int`): iterations.
        eps (`float`): least norm to divide by.

    Returns:
        `torch.Tensor` of the same shape, in float32 on a CPU and in bfloat16 elsewhere.
    """
    a, b, c = coefficients
    wide = matrix.shape[0] <= matrix.shape[1]  # the products are of the shorter side
    x = (matrix if wide else matrix.T).to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
