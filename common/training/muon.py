"""Muon, the optimiser of all models: orthogonalised, balanced steps for hidden matrices."""

import torch
from torch import Tensor, nn


class Muon(torch.optim.AdamW):
    """Step hidden matrices along their orthogonalised momentum [Muon, Jordan et al. 2024].

    All else steps as in AdamW. In a gradient, a few large singular directions dominate; the small
    ones, which separate star from cross, barely move. Orthogonalised, all directions of a matrix
    move alike, and balanced, all neurons do. Scaled as in [Liu et al. 2025, sec. 2.2], a step is as
    long as AdamW's, so that one learning rate suits both.

    hidden: the modules whose weight matrices it orthogonalises: no embeddings, no heads
    adamw_ratio: learning rate of all other parameters, as a multiple of lr
    weight_decay: of matrices only

    Each group's "rate" is its highest learning rate, for a schedule to scale.
    """

    def __init__(self, model: nn.Module, hidden: list[nn.Module], lr: float,
                 adamw_ratio: float = 1.0, weight_decay: float = 0.0, **options):
        matrices = [p for module in hidden for p in module.parameters() if p.ndim > 1]
        is_hidden = set(map(id, matrices))
        others = [p for p in model.parameters() if id(p) not in is_hidden]
        matrix, vector, scalar = ([p for p in others if min(p.ndim, 2) == n] for n in (2, 1, 0))
        super().__init__([
            {"params": matrices, "rate": lr, "weight_decay": weight_decay},
            {"params": matrix, "rate": lr * adamw_ratio, "weight_decay": weight_decay},
            # decay would only pull norm gains and biases from where they belong
            {"params": vector, "rate": lr * adamw_ratio, "weight_decay": 0.0},
            # a temperature is a single number with far to go: the full rate
            {"params": scalar, "rate": lr, "weight_decay": 0.0},
        ], fused=True, **options)

    @torch.no_grad()
    def step(self) -> None:
        group, by_shape = self.param_groups[0], {}
        for p in group["params"]:
            if p.grad is not None:
                state = self.state[p]
                if "power" not in state:  # "step" is AdamW's: without it load_state_dict fails
                    state.update(momentum=torch.zeros_like(p), power=p.new_zeros(len(p), 1),
                                 step=torch.zeros(()))
                state["momentum"].lerp_(p.grad, 0.05)
                p.grad.lerp_(state["momentum"], 0.95)  # Nesterov: look ahead along the momentum
                by_shape.setdefault(p.shape, []).append(p)
        for matrices in by_shape.values():  # stacked: many small products cost more than one large
            gradients = torch.stack([p.grad.flatten(1) for p in matrices])           # (k out in)
            updates = orthogonalise(gradients)
            updates = balance(updates, [self.state[p]["power"] for p in matrices])
            length = 0.2 * max(updates.shape[1:]) ** 0.5
            for p, update in zip(matrices, updates):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view(p.shape), alpha=-group["lr"] * length)
                p.grad = None  # so that AdamW, below, passes over it
        super().step()


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring singular values nearer to 1 by three steps of an odd polynomial: (k m n) -> (k m n).

    With X = U S V', the product (a + b XX' + c (XX')²) X is U (a S + b S³ + c S⁵) V', so no
    decomposition is needed. The three brackets are multiplied first, since XX' is smaller than X.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square, one = x @ x.mT, torch.eye(x.shape[1], device=x.device)

    def polynomial(square: Tensor) -> Tensor:
        return 3.4445 * one - 4.7750 * square + 2.0315 * square @ square

    bracket = product = polynomial(square)
    for _ in range(2):
        square = bracket @ square @ bracket  # XX' of the next step's X
        bracket = polynomial(square)
        product = bracket @ product
    x = product @ x
    return x if wide else x.mT


def balance(updates: Tensor, powers: list[Tensor]) -> Tensor:
    """Let all neurons, the rows, move equally far: (k out in) -> (k out in) [NorMuon, Li 2025].

    An orthogonal matrix with more rows than columns has columns of one length but rows of many:
    some neurons would move far, others hardly. So each row is divided by its root mean square over
    about 20 steps, as Adam does with every number; the norm of the whole matrix stays as it was.

    powers: the running mean square of each row, k tensors (out 1), updated here
    """
    squares = updates.square().mean(dim=2, keepdim=True)                             # (k out 1)
    power = torch.stack([power.lerp_(square, 0.05) for power, square in zip(powers, squares)])
    balanced = updates / (power.sqrt() + 1e-7)
    norm = updates.norm(dim=(1, 2), keepdim=True)
    return balanced * norm / (balanced.norm(dim=(1, 2), keepdim=True) + 1e-7)
