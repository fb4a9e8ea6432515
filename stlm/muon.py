"""
Muon, an optimizer for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A gradient's largest singular values drown the others. Muon keeps the directions of the momentum and makes all of its
singular values about 1: where momentum = U S V', the step is U V'. What adamw_matrices() lists, norms and biases stay AdamW's.
make_optimizers() chooses a run's optimizers.
"""
import torch


def orthogonalise(matrices, steps=5):
    """(n, rows, columns) with rows <= columns -> the same U and V, singular values between 0.7 and 1.2; very small ones less.

    Each step is the polynomial a x + b x^3 + c x^5 of the singular values, as matrix products (Newton-Schulz). These
    coefficients lift small values fastest; they don't converge to 1, and don't have to."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)   # no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT                                                # (n, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b X X' + c (X X')^2
        x = torch.baddbmm(x, polynomial, x, beta=a)                    # (n, rows, columns)
    return x


class Muon(torch.optim.Optimizer):
    """The step of torch.optim.Muon, in the dtype that the processor computes in, and all matrices of one shape at
    once. torch's always computes in bfloat16, which most laptops would have to emulate, ten times slower."""

    def __init__(self, matrices, lr, weight_decay=0.1, momentum=0.95, dtype=torch.float32):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}   # {shape, lying: its matrices}
            for p in group['params']:
                if p.grad is not None:
                    alike.setdefault((min(p.shape), max(p.shape)), []).append(p)
            for matrices in alike.values():
                self.step_together(matrices, group)

    def step_together(self, matrices, group):
        lying, momentum = [], group['momentum']
        for p in matrices:
            state = self.state[p]
            if not state:
                state['momentum_buffer'] = torch.zeros_like(p)
            state['momentum_buffer'].lerp_(p.grad, 1 - momentum)
            update = p.grad.lerp(state['momentum_buffer'], momentum)   # Nesterov: a step ahead
            lying.append(update.mT if p.size(0) > p.size(1) else update)
        steps = orthogonalise(torch.stack(lying).to(self.dtype))       # (n, rows, columns)
        for p, step in zip(matrices, steps):
            step = step.mT if p.size(0) > p.size(1) else step
            stretch = max(1, p.size(0) / p.size(1))**0.5               # a tall matrix maps to more numbers
            p.mul_(1 - group['lr'] * group['weight_decay'])
            p.add_(step, alpha=-group['lr'] * stretch)


def make_optimizers(model, kind, learning_rate, muon_lr, weight_decay, beta2, dtype):
    """[(optimizer, its peak learning rate)]. Only matrices decay; Muon's are all but adamw_matrices()."""
    if kind not in ('muon', 'adamw'):
        raise ValueError(f'optimizer={kind}: make_optimizers() knows muon and adamw')
    trained = [p for p in model.parameters() if p.requires_grad]
    if odd := [tuple(p.shape) for p in trained if p.dim() not in (1, 2)]:
        raise ValueError(f'a parameter of shape {odd[0]}: the optimizers take only vectors and matrices')
    tables = [p for p in model.adamw_matrices() if p.requires_grad]
    vectors = [p for p in trained if p.dim() == 1]
    hidden = [p for p in trained if p.dim() == 2 and p not in {*tables}]
    optimizers = []
    if kind == 'muon' and hidden:
        optimizers.append((Muon(hidden, muon_lr, weight_decay, dtype=dtype), muon_lr))
        hidden = []
    groups = [dict(params=tables + hidden, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)
    return [*optimizers, (adamw, learning_rate)]
