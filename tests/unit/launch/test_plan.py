"""Plans beyond test_run_parts.py: full micro-batches, caps, and the corners of few samples."""

import itertools

import numpy as np
import pytest

from torchspec.data.plan import MicroBatch, Part, epoch_ends, epoch_order, plan_micro_batches, rank_plan
from torchspec.errors import UserError

LENGTHS = np.random.default_rng(3).integers(1, 90, size=101)


@pytest.mark.parametrize(("samples", "max_tokens"), [(1, 1000), (4, 100), (7, 250), (1000, 90), (1000, 10**6)])
def test_a_micro_batch_ends_only_when_the_next_sample_does_not_fit(samples, max_tokens):
    plan = plan_micro_batches(LENGTHS, 0, 2, samples, max_tokens)
    for batch, following in itertools.pairwise(plan):
        tokens = LENGTHS[list(batch.indices)].sum()
        assert 1 <= len(batch.indices) <= samples and tokens <= max_tokens
        full = len(batch.indices) == samples or tokens + LENGTHS[following.indices[0]] > max_tokens
        assert full or following.epoch == batch.epoch + 1


def test_epochs_come_in_order_and_each_in_another_order_of_samples():
    plan = plan_micro_batches(LENGTHS, 0, 3, 5, 400)
    assert [b.epoch for b in plan] == sorted(b.epoch for b in plan)
    orders = [[i for b in plan if b.epoch == epoch for i in b.indices] for epoch in range(3)]
    assert all(sorted(order) == list(range(len(LENGTHS))) for order in orders) and len(set(map(tuple, orders))) == 3


def test_an_epoch_does_not_depend_on_how_many_follow():
    """A run of two epochs that is started again with four has trained on the same text so far."""
    two, four = (plan_micro_batches(LENGTHS, 7, epochs, 5, 400) for epochs in (2, 4))
    assert four[: len(two)] == two


def test_a_sample_of_exactly_the_limit_fits_and_one_token_more_is_refused():
    assert len(plan_micro_batches(np.array([50, 50]), 0, 1, 9, 50)) == 2
    with pytest.raises(UserError, match=r"training.max_batch_tokens=49 is below the longest sample \(50 tokens\)"):
        plan_micro_batches(np.array([50, 50]), 0, 1, 9, 49)


def test_no_samples_make_no_micro_batches_and_no_run():
    assert plan_micro_batches(np.array([], dtype=np.int64), 0, 2, 4, 100) == []
    with pytest.raises(UserError, match="0 micro-batches do not fill one step"):
        rank_plan([], 0, 1, 1, None)


@pytest.mark.parametrize("max_steps", [1, 3, 10**6])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 3), (4, 2)])
def test_the_step_limit_cuts_every_rank_alike(world_size, accumulation, max_steps):
    plan = [MicroBatch(0, (i,)) for i in range(50)]
    ranks = [rank_plan(plan, rank, world_size, accumulation, max_steps) for rank in range(world_size)]
    steps = min(max_steps, 50 // (world_size * accumulation))
    assert [len(r) for r in ranks] == [steps * accumulation] * world_size
    assert sorted(b.indices for r in ranks for b in r) == [(i,) for i in range(steps * accumulation * world_size)]


@pytest.mark.parametrize("accumulation", [1, 2, 6])
def test_a_step_takes_the_same_micro_batches_whatever_the_number_of_ranks(accumulation):
    """12 micro-batches per optimizer step, as ranks x accumulation."""
    plan = [MicroBatch(0, (i,)) for i in range(100)]
    alone = rank_plan(plan, 0, 1, 12, None)
    world = 12 // accumulation
    ranks = [rank_plan(plan, rank, world, accumulation, None) for rank in range(world)]
    for step in range(len(alone) // 12):
        ours = [b for r in ranks for b in r[step * accumulation : (step + 1) * accumulation]]
        assert sorted(b.indices for b in ours) == [b.indices for b in alone[step * 12 : (step + 1) * 12]]


def test_too_few_micro_batches_for_one_step_are_refused_with_the_numbers():
    with pytest.raises(UserError, match="5 micro-batches do not fill one step of 2 ranks x 3 accumulation; lower"):
        rank_plan([MicroBatch(0, (i,)) for i in range(5)], 0, 2, 3, None)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_mix_takes_the_passes_it_was_told_to(shuffle):
    """Conservation: over the run, each source's samples come passes x epochs times, none more than once oftener than another."""
    parts, epochs = (Part(40), Part(10, 2.5), Part(37, 0.3), Part(8, 1.0)), 7
    orders = [epoch_order(parts, 3, epoch, shuffle) for epoch in range(epochs)]
    counts = np.bincount(np.concatenate(orders), minlength=95)
    first = 0
    for part in parts:
        own = counts[first : first + part.samples]
        assert own.sum() == round(epochs * part.passes * part.samples) and own.max() - own.min() <= 1
        first += part.samples
        for order in orders:
            taken = ((order >= first - part.samples) & (order < first)).sum()
            assert abs(taken - part.passes * part.samples) <= 1
    if not shuffle:
        assert all((np.diff(np.searchsorted([40, 50, 87], order, side="right")) >= 0).all() for order in orders)  # source after source


def test_one_source_keeps_the_order_it_always_had():
    """A checkpoint from before there were mixes resumes on the same text."""
    for epoch in range(3):
        assert (epoch_order((Part(101),), 5, epoch, True) == np.random.default_rng((5, epoch)).permutation(101)).all()


def test_halves_follow_each_other_and_are_drawn_by_the_seed():
    halves = [set(epoch_order((Part(20, 0.5),), 1, epoch, True)) for epoch in range(2)]
    assert halves[0] | halves[1] == set(range(20)) and not halves[0] & halves[1]
    assert halves[0] != set(range(10)) and halves[0] != set(epoch_order((Part(20, 0.5),), 2, 0, True))


def test_without_shuffling_the_samples_come_in_the_order_of_the_file():
    plan = plan_micro_batches(LENGTHS, 0, 2, 5, 400, shuffle=False)
    assert [i for batch in plan for i in batch.indices] == [*range(101)] * 2


@pytest.mark.parametrize("per_step", [1, 2, 3, 7])
def test_an_epoch_ends_with_the_step_after_which_the_next_one_begins(per_step):
    batches = [MicroBatch(epoch, (i,)) for epoch in range(3) for i in range(5)]
    ends = epoch_ends(batches, per_step)
    begins = {step: batches[step * per_step].epoch for step in range(len(batches) // per_step + (len(batches) % per_step > 0))}
    assert ends == {step for step in begins if step and begins[step] != begins[step - 1]}
    if per_step == 1:
        assert ends == {5, 10}
