"""Muon: an optimizer that gives each weight matrix an update with even singular values.

Decides to be written here, though PyTorch has one: PyTorch's works in bfloat16, which made a
training step five times slower on a processor without bfloat16 units. This one works in float32 and takes all
matrices of one shape at once.
"""

# mypy: disable-error-code="misc, no-any-return, untyped-decorator"
# (PyTorch is untyped here: its classes are Any to mypy.)

from __future__ import annotations

import torch
from torch import Tensor, nn


def even_out(update: Tensor, rounds: int = 5) -> Tensor:
    """Newton-Schulz: moves all singular values of a stack of matrices to about one."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, evened out, with decoupled weight decay; rates are on AdamW's scale."""

    def __init__(
        self, weights: list[nn.Parameter], lr: float, decay: float = 0.05, momentum: float = 0.95
    ) -> None:
        shapes = sorted({tuple(p.shape) for p in weights})
        groups = [{"params": [p for p in weights if tuple(p.shape) == s]} for s in shapes]
        super().__init__(groups, {"lr": lr, "decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One update of all matrices."""
        for group in self.param_groups:
            updates = []
            for p in group["params"]:
                if p.grad is None:
                    return
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(state["momentum"], group["momentum"]))
            evened = even_out(torch.stack(updates))
            scale = 0.2 * max(evened.shape[-2:]) ** 0.5
            for p, update in zip(group["params"], evened.unbind(0), strict=True):
                p.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)
