"""FeatureStream with the real capture: its whole state is one integer, and what it counts is what it delivered."""

import numpy as np
import pytest
import torch

from tests.unit.tiny import LAYERS, MASK, random_prompt
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.data.plan import plan_micro_batches
from torchspec.errors import ContractError
from torchspec.records import Batch, Prompt
from torchspec.training.stream import Beside, FeatureStream, InProcess, all_cores, cores_shared

LENGTHS = np.random.default_rng(1).integers(3, 30, size=19)
DATASET = [Prompt(i, random_prompt(i, int(n)), torch.arange(int(n)) > 1) for i, n in enumerate(LENGTHS)]
PLAN = plan_micro_batches(LENGTHS, 0, 2, 3, 60)


def stream(oracle, position: int, depth: int, kind=InProcess) -> FeatureStream:
    return FeatureStream(DATASET, kind(oracle), PLAN, position, depth)


def equal(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("ids", "loss_mask", "context"))
    return tensors and (a.lengths, a.indices, a.epoch) == (b.lengths, b.indices, b.epoch)


@pytest.fixture(scope="module")
def whole(tiny_oracle) -> list[Batch]:
    return list(stream(tiny_oracle, 0, 1))


def test_the_whole_stream_is_the_plan_with_each_documents_own_features(tiny_oracle, whole):
    assert [(b.epoch, b.indices) for b in whole] == [(m.epoch, m.indices) for m in PLAN]
    for batch in whole:
        parts = batch.ids.split(batch.lengths), batch.loss_mask.split(batch.lengths), batch.context.split(batch.lengths)
        for index, ids, mask, context in zip(batch.indices, *parts, strict=True):
            assert torch.equal(ids, DATASET[index].ids) and torch.equal(mask, DATASET[index].loss_mask)
            alone = tiny_oracle.capture(DATASET[index]).context
            torch.testing.assert_close(context, alone, rtol=1e-4, atol=1e-4)  # float32; documents of similar length share a forward


@pytest.mark.parametrize("kind", [InProcess, Beside])
@pytest.mark.parametrize("depth", [1, 3, 1000])
@pytest.mark.parametrize("position", [0, 1, 5, len(PLAN) - 1, len(PLAN)])
def test_from_any_position_and_with_any_prefetch_it_is_the_tail_bitwise(tiny_oracle, whole, position, depth, kind):
    tail = list(stream(tiny_oracle, position, depth, kind))
    assert len(tail) == len(whole) - position and all(map(equal, tail, whole[position:]))


@pytest.mark.parametrize("depth", [1, 4, 1000])
def test_position_is_the_next_micro_batch_although_later_ones_are_under_way(tiny_oracle, whole, depth):
    """Stopped after any batch, a new stream from `position` goes on as if nothing had happened."""
    running = stream(tiny_oracle, 2, depth)
    for taken, _ in zip(range(1, 4), running, strict=False):
        assert running.position == 2 + taken
    assert equal(next(iter(stream(tiny_oracle, running.position, depth))), whole[5])


def test_it_counts_the_tokens_that_were_captured(tiny_oracle):
    counted = stream(tiny_oracle, 0, 4)
    delivered = sum(len(batch.ids) for batch in counted)
    assert counted.meter.tokens == delivered == 2 * LENGTHS.sum()
    taken = counted.meter.take()
    assert 0 < taken["wait"] < 1 and taken["train_tok_s"] > taken["captured_tok_s"] and counted.meter.tokens == 0


@pytest.mark.parametrize("kind", [InProcess, Beside])
def test_a_failing_capture_reaches_the_caller_and_names_the_sample(tiny_folder, kind):
    """A target that overflows on one token: no batch may silently lack the documents that hold it."""
    oracle = HFCapture(CaptureSpec(tiny_folder, LAYERS, torch.float32))
    oracle.model.get_input_embeddings().weight.data[MASK] = float("nan")
    planted = [*DATASET[:4], Prompt(4, torch.full((9,), MASK), torch.arange(9) > 1), *DATASET[5:]]
    with pytest.raises(ContractError, match="sample 4 .*NaN"):
        list(FeatureStream(planted, kind(oracle), PLAN, 0, 4))


def test_an_evaluation_has_all_cores_and_waits_for_what_was_asked_for(tiny_oracle, whole):
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        beside = Beside(tiny_oracle)
        with cores_shared(beside):
            pending = [beside.request([DATASET[i] for i in m.indices]) for m in PLAN[:8]]
            assert torch.get_num_threads() == 2
            with all_cores(beside):
                assert torch.get_num_threads() == 4 and all(request.done() for request in pending)
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
