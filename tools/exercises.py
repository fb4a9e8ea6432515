"""
Is an exercise of docs/exercises.md solved? Red before, green after, in seconds.

    python -m tools.exercises --number=2

Each check is a function below: it asks model.py or train.py, as they are now, for what the exercise is about.
"""
number = 1   # the exercise, 1 to 12

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())

import torch

import model as mine
import train
from model import GPT, Config, FeedForward

SMALL = dict(vocab_size=50, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, d_ff=48)
SPELLING = [b'', b'a', b'an', b'and', b'the'] + [bytes([i]) for i in range(128, 173)]


def small(**changes):
    torch.manual_seed(0)
    return GPT(Config(**{**SMALL, **changes}), SPELLING).eval()


def parts():
    """{part: its parameters} of the model that train.py trains by default."""
    with torch.device('meta'):
        return GPT(Config()).count_parameters()


def check_1():
    """parameters_by_hand(config) says what count_parameters() counts."""
    for change in {}, dict(tie_embeddings=False), dict(n_kv_head=4, n_layer=3), dict(ffn='gelu', d_ff=64):
        model = small(**change)
        assert mine.parameters_by_hand(model.config) == sum(p.numel() for p in model.parameters()), change


def check_2():
    """The feed-forward without a gate is down(relu(up(x))^2)."""
    ffn, x = FeedForward(8, 12, 'gelu'), torch.randn(5, 8)
    expected = (x @ ffn.up.weight.T).clamp(min=0)**2 @ ffn.down.weight.T
    assert torch.allclose(ffn(x), expected, atol=1e-5), 'not down(relu(up(x))^2)'


def check_3():
    """What is pooled is the state at a token's last byte, just before END."""
    model, seen = small(embedding='byte_pool', n_byte_embd=16, n_byte_head=2), {}
    model.tokens.encoder[-1].register_forward_hook(lambda module, inputs, out: seen.update(states=out))
    model.tokens.pool.register_forward_pre_hook(lambda module, inputs: seen.update(pooled=inputs[0]))
    model.tokens.embed(torch.tensor([[3]]))   # and
    assert torch.allclose(seen['pooled'], seen['states'][:, 2]), 'not the state at the last byte, d'
    model.tokens.embed(torch.tensor([[0]]))   # the end of a text, which has no byte
    assert torch.allclose(seen['pooled'], seen['states'][:, 0]), 'the end of a text has another state than END'


def check_4():
    """The future is seen: another last token changes the states before it."""
    a, b = torch.arange(10)[None], torch.arange(10)[None].clone()
    b[0, -1] = 40
    model = small()
    assert not torch.allclose(model.hidden(a)[:, :9], model.hidden(b)[:, :9], atol=1e-6), 'the past knows nothing of the future'


def check_5():
    """END costs nothing, so the probabilities of all tokens sum to more than one."""
    model = small(embedding='byte_pool', n_byte_embd=16, n_byte_head=2)
    with torch.no_grad():
        total = model.log_probs(torch.tensor([[3, 1, 4]])).exp().sum().item()
    assert total > 1.01, f'the probabilities sum to {total:.4f}'


def check_6():
    """One head of keys and values for all of queries."""
    C, K = Config.n_embd, Config.n_embd // Config.n_head
    assert parts()['attention'] == Config.n_layer * (2 * C * C + 2 * C * K), 'the keys are not of one head'


def check_7():
    """Without positions, the order of the earlier tokens makes no difference to a single layer."""
    model = small(n_layer=1)
    a, b = (model.hidden(torch.tensor([ids]))[0, -1] for ids in ([5, 6, 7, 8], [7, 5, 6, 8]))
    assert torch.allclose(a, b, atol=1e-6), 'the order still matters'


def check_8():
    """One feed-forward for all layers, with adapters."""
    found = parts()
    assert found['feed-forward'] == 3 * Config.n_embd * Config.d_ff and found.get('LoRA', 0) > 0, found


def check_9():
    """Two tables."""
    assert parts()['token tables'] == 2 * Config.vocab_size * Config.n_embd, parts()


def check_10():
    """Dropout only in the last third."""
    points = train.dropout if isinstance(train.dropout, list) else [(0, train.dropout)]
    early, late = (train.along(points, it) for it in (350, 590))
    assert early == 0 < late, f'dropout is {early} at step 350 and {late} at step 590'


def check_11():
    """Only about 10 kB of text, which is 2,800 tokens."""
    assert 2000 <= train.train_tokens <= 4000, f'train_tokens={train.train_tokens}'


def check_12():
    """The learning rate is ten times the right one throughout."""
    factors = [train.learning_rate_factor(it, 500, 5) for it in (20, 250, 400)]
    assert factors[0] > 9 and factors[1] > 4 and factors[2] > 0.5, factors


if __name__ == '__main__':
    if not (check := globals().get(f'check_{number}')):
        raise Failure(f'number={number}: the exercises are 1 to 12')
    try:
        check()
    except (AssertionError, AttributeError) as error:
        raise Failure(f'exercise {number} is red: {check.__doc__} ({error})')
    print(f'exercise {number} is green: {check.__doc__}')
