"""stlm/muon.py, against singular values in float64 and against torch's own Muon."""
import torch

from stlm.muon import Muon, orthogonalise


def test_the_orthogonalised_matrix_has_the_singular_vectors_of_a_float64_svd_and_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 50)
    U, S, Vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    inside = U.mT @ orthogonalise(matrices).double() @ Vh.mT                     # (3, 20, 20)
    assert (inside - inside.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() < 1e-4
    assert 0.6 < inside.diagonal(dim1=1, dim2=2).min() and inside.diagonal(dim1=1, dim2=2).max() < 1.25


def test_muon_takes_the_steps_of_torchs_muon_but_for_its_rounding_to_bfloat16():
    torch.manual_seed(0)
    shapes = [(32, 32), (96, 32), (32, 96), (32, 32), (16, 32)]
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.1)) for shape in shapes] for _ in range(2))
    optimizers = Muon(ours, lr=0.05, weight_decay=0.2), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.2)
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs):
        assert (a - 0.1).norm() > 0.3 and (a - b).norm() < 0.02 * (b - 0.1).norm()
