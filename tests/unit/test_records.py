"""The three records: what they refuse, and the spans of a loss mask. (Features.check: capture/test_capture_checks.py.)"""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import random_features
from torchspec.errors import ContractError, UserError
from torchspec.records import Batch, Prompt
from torchspec.training.stream import pack


def prompt(mask: str, index: int = 3) -> Prompt:
    return Prompt(index, torch.arange(len(mask)), torch.tensor([c == "1" for c in mask], dtype=torch.bool))


@pytest.mark.parametrize("mask", ["01", "10", "0110", "00000001"])
def test_a_prompt_with_some_supervised_tokens_passes(mask):
    assert prompt(mask).check().loss_mask.tolist() == [c == "1" for c in mask]


@pytest.mark.parametrize("mask", ["0000", "1111", "1", "0", ""])
def test_a_prompt_of_which_nothing_or_everything_is_supervised_is_refused(mask):
    count = f"{mask.count('1')} of {len(mask)}"
    with pytest.raises(ContractError, match=f"sample 3: {count} tokens are supervised.*chat template"):
        prompt(mask).check()


@pytest.mark.parametrize(("ids", "mask"), [(torch.zeros(4), torch.ones(5)), (torch.zeros(1, 4), torch.ones(1, 4))])
def test_a_prompt_of_other_shapes_is_refused(ids, mask):
    with pytest.raises(ContractError, match=r"sample 3: ids \(.*\) and loss mask \(.*\) differ in shape"):
        Prompt(3, ids.long(), mask.bool()).check()


@pytest.mark.parametrize("mask", ["", "0", "1", "0110", "1101", "0101010", "1111", "0011100110", "1000001"])
def test_spans_are_the_runs_of_supervised_tokens(mask):
    expected, start = [], None
    for i, c in enumerate(mask + "0"):
        if c == "1" and start is None:
            start = i
        elif c == "0" and start is not None:
            expected.append((start, i))
            start = None
    assert prompt(mask).spans() == expected


def batch() -> Batch:
    return pack([random_features("00111", 4), random_features("0011", 9)], epoch=2)


def test_documents_are_packed_end_to_end_with_nothing_between():
    a, b, packed = random_features("00111", 4), random_features("0011", 9), batch()
    assert (packed.lengths, packed.indices, packed.epoch) == ((5, 4), (4, 9), 2)
    for name, parts in (("ids", (a.prompt.ids, b.prompt.ids)), ("loss_mask", (a.prompt.loss_mask, b.prompt.loss_mask))):
        assert torch.equal(getattr(packed, name), torch.cat(parts))
    assert torch.equal(packed.context, torch.cat((a.context, b.context)))


@pytest.mark.parametrize("field", ["ids", "loss_mask", "context", "lengths"])
def test_a_batch_whose_parts_differ_in_length_is_refused(field):
    whole = batch()
    assert whole.check() is whole
    with pytest.raises(ContractError, match=r"batch of samples \(4, 9\): .* for documents of \d+ tokens"):
        replace(whole, **{field: getattr(whole, field)[:-1]}).check()


def test_a_broken_contract_is_one_sentence_for_the_user():
    assert issubclass(ContractError, UserError)
