"""Copies between host and device: none on a CPU; on a GPU the same bits, beside what computes and never under its feet."""

import pytest
import torch

from tests.unit.tiny import random_prompt
from torchspec.capture.base import CaptureSpec
from torchspec.capture.cache import CachedCapture
from torchspec.capture.hf import HFCapture
from torchspec.nn.send import send
from torchspec.nn.staging import CopyStream, bring, to_host
from torchspec.records import Features, Prompt
from torchspec.training.stream import pack
from torchspec.transfer.codec import decode, encode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROWS, WIDTH, ROUNDS = 2048, 4096, 20
LONG = 50_000_000  # cycles that a kernel keeps the computing stream busy: 30 ms of an H100


def sample(index: int, rows: int = ROWS) -> Features:
    context = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(index)).bfloat16()
    return Features(Prompt(index, torch.arange(rows), torch.arange(rows) > 2), context, (1, 3), "random")


def test_on_a_cpu_nothing_is_copied_and_nobody_waits():
    tensor, stream = torch.randn(3, 4), CopyStream(CPU)
    assert all(passed is tensor for passed in (bring(tensor, CPU), send(tensor, CPU), to_host(tensor)))
    made, there = stream.run(torch.add, tensor, 1)
    stream.hand_over([made], there)
    assert there is None and torch.equal(made, tensor + 1)


def test_a_batch_goes_to_a_device_with_everything_it_holds():
    batch = pack([sample(0, 5), sample(1, 7)], epoch=3)
    there = batch.to(CPU)
    assert (there.lengths, there.indices, there.epoch) == ((5, 7), (0, 1), 3)
    assert all(getattr(there, name) is getattr(batch, name) for name in ("ids", "loss_mask", "context"))


@on_gpu
@pytest.mark.parametrize("fp8", [False, True])
def test_features_that_are_handed_over_are_those_that_were_sent(fp8):
    """The computing stream is kept busy and its memory freed at once: a copy that overtook it, or was overtaken, would show."""
    stream, outcomes = CopyStream(CUDA), []
    for index in range(ROUNDS):
        sent = sample(index)
        wire = encode(sent, fp8)
        torch.cuda._sleep(LONG)
        features, there = stream.run(decode, wire, sent.prompt, CUDA, torch.bfloat16)
        stream.hand_over([features.context], there)
        torch.cuda._sleep(LONG)
        outcomes.append((features.context * 2, 2 * decode(wire, sent.prompt, CPU, torch.bfloat16).context))
        del features  # its product waits behind the sleep, its memory must wait as well
    assert all(torch.equal(got.cpu(), expected) for got, expected in outcomes)


@on_gpu
def test_a_copy_does_not_wait_for_the_stream_that_computes():
    context = sample(0).context
    stream = CopyStream(CUDA)
    stream.run(send, context, CUDA)  # pinned memory is there
    torch.cuda.synchronize()
    torch.cuda._sleep(20 * LONG)
    computing = torch.cuda.current_stream().record_event()
    _, there = stream.run(send, context, CUDA)
    there.synchronize()
    assert not computing.query()


@on_gpu
def test_what_is_brought_and_taken_back_has_the_same_bits_and_is_pinned():
    context = sample(0).context
    host = to_host(bring(context, CUDA))
    assert torch.equal(host, context) and host.is_pinned()
    batch = pack([sample(0), sample(1)], epoch=0)
    back = batch.to(CUDA).to(CPU)
    assert all(torch.equal(getattr(back, name), getattr(batch, name)) for name in ("ids", "loss_mask", "context"))


@on_gpu
def test_the_cache_keeps_features_on_the_host_and_yields_them_on_the_device(tiny_folder):
    inner = HFCapture(CaptureSpec(tiny_folder, (1, 3), torch.float32, CUDA))
    cached = CachedCapture(inner, 2**20, CUDA)
    prompt = Prompt(0, torch.arange(4, 24), torch.arange(20) > 5)
    first, again = cached.capture(prompt).context, cached.capture(prompt).context
    assert first.is_cuda and again.is_cuda and torch.equal(first, again) and all(kept.context.is_pinned() for kept in cached.kept.values())


def test_the_cache_knows_a_text_by_its_tokens_and_not_by_its_number(tiny_oracle):
    """A server's answer is read under the number of the prompt that it was asked."""
    cached = CachedCapture(tiny_oracle, 2**20, CPU)
    texts = [Prompt(0, random_prompt(seed, 20), torch.arange(20) > 5) for seed in range(2)]
    for text in (*texts, *texts):
        assert torch.equal(cached.capture(text).context, tiny_oracle.capture(text).context)
    assert cached.bytes == sum(cached.capture(text).context.nbytes for text in texts)
