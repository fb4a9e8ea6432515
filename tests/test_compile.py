"""torch.compile of model.py: how many graphs, and that none is made anew."""
import torch

from test_model import BYTES, tiny, tokens


def counting():
    """A list that grows with every graph that torch.compile makes, and the backend that fills it."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph
    return graphs, backend


def test_a_dropout_schedule_is_one_compiled_graph():
    graphs, backend = counting()
    model = tiny().train()
    model.dropout.set(0.5)   # as train.py does: the schedule's largest p, before compiling
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for step in range(4):
        model.dropout.set(step / 8)
        compiled(tokens(2, 64), tokens(2, 64))
    assert len(graphs) == 1


def test_a_compiled_byte_model_recompiles_nothing_when_the_words_change():
    graphs, backend = counting()
    model, numbers = tiny(**BYTES).train(), []
    compiled = torch.compile(model, backend=backend)
    for seed in range(3):
        idx, targets = tokens(2, 64, seed=seed), tokens(2, 64, seed=seed + 9)
        torch.testing.assert_close(compiled(idx, targets), model(idx, targets))
        numbers.append(len(graphs))
    assert numbers[0] == numbers[-1]
