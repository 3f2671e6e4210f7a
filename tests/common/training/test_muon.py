"""Muon: orthogonalised, balanced steps for hidden matrices, AdamW's for all else."""

import torch

from common.training.muon import Muon, balance, orthogonalise


def test_orthogonalising_keeps_directions_and_brings_singular_values_near_one():
    u, _, v = torch.linalg.svd(torch.randn(24, 60, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.08, 1, 24)) @ v
    for matrices in (torch.stack([matrix, 100 * matrix]), matrix.mT[None]):  # each on its own, whatever its length
        near = torch.linalg.svdvals(orthogonalise(matrices))
        assert ((near > 0.6) & (near < 1.3)).all()
    mixed = u.mT @ orthogonalise(matrix[None])[0] @ v.mT
    assert (mixed - torch.diag(mixed.diag())).abs().max() < 1e-4


def test_balancing_moves_all_neurons_equally_far_over_time():
    torch.manual_seed(0)
    uneven = torch.tensor([[[1.0], [0.01], [3.0]], [[2.0], [0.1], [0.1]]])  # (k out 1): how far each neuron would move
    powers = list(torch.zeros(2, 3, 1))
    for _ in range(60):
        updates = uneven * torch.randn(2, 3, 400)
        balanced = balance(updates, powers)
    rows = balanced.norm(dim=2)
    assert torch.allclose(rows, rows.mean(dim=1, keepdim=True).expand(2, 3), rtol=0.1)
    assert torch.allclose(balanced.norm(dim=(1, 2)), updates.norm(dim=(1, 2)))
    sudden = balance(torch.cat([10 * updates[:, :1], updates[:, 1:]], dim=1), powers).norm(dim=2)
    assert (sudden[:, 0] > 3 * sudden[:, 1]).all()  # over time: one step may still be longer


def test_a_neuron_or_matrix_without_a_gradient_stays():
    updates = torch.randn(2, 3, 4)
    updates[0, 1], updates[1] = 0, 0
    balanced = balance(updates, list(torch.zeros(2, 3, 1)))
    assert balanced.isfinite().all() and not balanced[0, 1].any() and not balanced[1].any()


def test_hidden_matrices_take_orthogonal_steps_and_all_else_adamws():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    peer = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    peer.load_state_dict(model.state_dict())
    muon = Muon(model, [model[1]], lr=0.01, adamw_ratio=0.5, weight_decay=0.1)
    adamw = torch.optim.AdamW([{"params": [p for p in peer.parameters() if p.ndim > 1], "weight_decay": 0.1},
                               {"params": [p for p in peer.parameters() if p.ndim == 1], "weight_decay": 0}], lr=0.005)
    for group in muon.param_groups:
        group["lr"] = group["rate"]
    before = model[1].weight.detach().clone()
    for each, optimiser in ((model, muon), (peer, adamw)):
        each(torch.ones(3, 6)).square().sum().backward()
        optimiser.step()
    for name in ("0.weight", "0.bias", "1.bias"):
        assert torch.allclose(model.get_parameter(name), peer.get_parameter(name), atol=1e-6), name
    step = (model[1].weight - before * (1 - 0.01 * 0.1)) / (0.01 * 0.2 * 8**0.5)
    assert 0.6 < torch.linalg.matrix_norm(step, 2) < 1.3
    assert torch.allclose(step.norm(dim=1), step.norm(dim=1).mean().expand(4), rtol=1e-3)  # balanced
