"""The tokens of a loss: drawn ones stand for those that never occur."""

import pytest
import torch

from torchspec.nn.loss_vocabulary import LossVocabulary

WIDTH, VOCABULARY = 24, 101


def test_a_vocabulary_of_seen_tokens_and_drawn_others_estimates_the_full_normaliser():
    g = torch.Generator().manual_seed(0)
    head, counts = torch.randn(VOCABULARY, WIDTH, generator=g) * 0.2, torch.zeros(VOCABULARY)
    counts[:20] = 1
    vocabulary, hidden = LossVocabulary(head, counts, 40), torch.randn(5, WIDTH, generator=g)
    full = (hidden @ head.T).exp().sum(-1)
    estimates = []
    for _ in range(2000):
        rows = vocabulary.draw(g)
        assert torch.equal(rows.ids[rows.index[torch.arange(20)]], torch.arange(20)) and torch.equal(head[rows.ids], rows.head)
        estimates.append((hidden @ rows.head.T + rows.bias).exp().sum(-1))
    estimates = torch.stack(estimates)
    standard_error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - full).abs() < 4 * standard_error).all()


@pytest.mark.parametrize("negatives", [None, 81, 1000])
def test_without_negatives_or_with_as_many_as_there_are_the_vocabulary_is_whole(negatives):
    head, counts = torch.randn(VOCABULARY, WIDTH), torch.zeros(VOCABULARY)
    counts[:20] = 1
    rows = LossVocabulary(head, counts, negatives).draw(torch.Generator())
    assert rows.head is head and rows.bias is None and torch.equal(rows.ids, torch.arange(VOCABULARY))
