"""FlexAttention and the losses against references in higher precision, at the sizes that drafts have."""

import time
from functools import partial

import torch
from gpu.place import Place, relative, within
from torch import Tensor

from torchspec.methods.eagle3.method import chains
from torchspec.nn.attention import BlockLayout, flex, flex_block_mask, structured_attention
from torchspec.nn.logits import AS_THEY_COME
from torchspec.nn.losses import HeadLosses, Teacher, head_losses

HEADS = {"gqa 1": (8, 8, 64), "gqa 3": (9, 3, 64), "gqa 4": (32, 8, 128), "gqa 8": (32, 4, 128)}  # heads, kv heads, head size
ROUNDING = 1e-2  # bfloat16 operands give 2e-3 to 5e-3


def random_layout(place: Place, lengths: tuple[int, ...], count: int, block: int) -> BlockLayout:
    """Ascending anchors; the last blocks of every document are invalid, the second document has one valid block."""
    anchors, valid = torch.zeros(len(lengths), count, dtype=torch.int64), torch.zeros(len(lengths), count, dtype=torch.bool)
    for n, length in enumerate(lengths):
        drawn = torch.randperm(length)[: 1 if n == 1 else count - 3].sort().values
        anchors[n, : len(drawn)], valid[n, : len(drawn)] = drawn, True
    return BlockLayout(anchors.to(place.device), valid.to(place.device), lengths, block)


def layouts(place: Place, all_of_them: bool) -> dict[str, tuple[BlockLayout, int, int]]:
    """Layout, rows that ask and own rows: blocks of DFlash, steps of EAGLE-3. No total is a multiple of 128; each may be a graph."""
    first, second = place.pick(((1000, 517, 731), (640, 333, 50)), ((50, 21), (40, 13)))
    count, block = place.pick(40, 8), place.pick(16, 4)
    blocks, others = random_layout(place, first, count, block), random_layout(place, second, count - 3, block)
    two = {"blocks": (blocks, block, block), "chains, third step": (chains(others), 1, 2)}
    return two | ({"other lengths": (others, block, block), "chains, no own rows": (chains(blocks), 1, 0)} if all_of_them else {})


def attention_inputs(place: Place, layout: BlockLayout, slots: int, own: int, heads: tuple[int, int, int]) -> list[Tensor]:
    count, total, (asking, kv_heads, size) = layout.anchors.numel(), sum(layout.lengths), heads
    rows = [(count * slots, asking), (total, kv_heads), (total, kv_heads), (count * own, kv_heads), (count * own, kv_heads)]
    return [place.normal(*shape, size) for shape in rows]


def flex_case(place: Place, heads: tuple[int, int, int]) -> dict:
    errors = {}
    for name, (layout, slots, own) in layouts(place, heads == HEADS["gqa 4"]).items():
        found = compared(place, layout, slots, own, heads)
        errors |= {f"{name}: {part}": error for part, error in found.items()}
    return {"ok": within(errors.values(), ROUNDING), "worst": max(errors.values()), "heads": heads, "errors": errors}


def compared(place: Place, layout: BlockLayout, slots: int, own: int, heads: tuple[int, int, int]) -> dict[str, float]:
    """Errors of the output and of all gradients. Rows of invalid blocks are left out, as the loss leaves them out, but must be finite."""
    inputs = attention_inputs(place, layout, slots, own, heads)
    ours = [x.clone().requires_grad_(place.cuda) for x in inputs]  # on a CPU flex has no backward pass
    exact = [x.float().requires_grad_(place.cuda) for x in inputs]
    real = layout.valid.flatten().repeat_interleave(slots)
    out, expected = flex(*ours, flex_block_mask(layout, slots, own)), structured_attention(*exact, layout)
    errors = {"out": relative(out[real], expected[real])}
    if place.cuda:
        upstream = torch.randn_like(expected) * real[:, None, None]
        out.backward(upstream.to(out.dtype))
        expected.backward(upstream.to(out.dtype).float())
        names = ("q", "k of the context", "v of the context", "own k", "own v")
        errors |= {name: relative(a.grad, b.grad) for name, a, b in zip(names, ours, exact, strict=True) if a.numel()}
    finite = all(bool(x.isfinite().all()) for x in (out, *(x.grad for x in ours if x.grad is not None)))
    return errors | ({} if finite else {"not finite": float("nan")})


def flex_inference(place: Place) -> dict:
    """Few rows, as evaluation asks for them: below 128 PyTorch would choose its decoding kernel."""
    heads, block, errors = place.pick(HEADS["gqa 4"], (4, 2, 16)), 16, {}
    with torch.inference_mode():
        for count, slots, own in ((3, block, block), (5, block, block), (7, block, block), (1, 1, 0), (1, 1, 2), (37, 1, 3)):
            anchors = (torch.randperm(200)[:count] + 1).sort().values[None].to(place.device)
            layout = BlockLayout(anchors, torch.ones_like(anchors, dtype=torch.bool), (201,), block)
            errors[f"{count * slots} rows, {own} own"] = compared_output(place, layout, slots, own, heads)
    return {"ok": within(errors.values(), ROUNDING), "worst": max(errors.values()), "errors": errors}


def compared_output(place: Place, layout: BlockLayout, slots: int, own: int, heads: tuple[int, int, int]) -> float:
    inputs = attention_inputs(place, layout, slots, own, heads)
    expected = structured_attention(*(x.float() for x in inputs), layout)
    return relative(flex(*inputs, flex_block_mask(layout, slots, own)), expected)


def growing(place: Place) -> dict:
    """Attention of one row of two sequences as they grow by a token, with an explicit mask: does each new length cost a plan?"""
    rows, times = place.pick(64, 4), {}
    q, k, v = (place.normal(2, heads, length, 128) for heads, length in ((32, 1), (32, 500), (32, 500)))

    def attend(end: int) -> Tensor:
        visible = torch.ones(2, 1, 1, end, dtype=torch.bool, device=place.device)
        return torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :end], v[:, :, :end], attn_mask=visible)

    for name, allowed, first in (("without cuDNN", False, 100), ("with cuDNN", True, 101)):
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        attend(first - 2)
        place.synchronize()
        started = time.perf_counter()
        for end in range(first, first + 2 * rows, 2):
            attend(end)
        place.synchronize()
        times[name] = 1000 * (time.perf_counter() - started) / rows
    torch.backends.cuda.enable_cudnn_sdp(False)
    return {"ms_of_a_new_length": times}


def head_inputs(place: Place, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [r, H], head [V, H] with logits of variance one, labels [r]; Qwen3-8B's width and vocabulary."""
    width, vocabulary = place.pick((4096, 151_936), (64, 1000))
    head = (place.normal(vocabulary, width, dtype=torch.float32) * width**-0.5).to(torch.bfloat16)
    return place.normal(rows, width).requires_grad_(), head, torch.randint(vocabulary, (rows,), device=place.device)


def cross_entropy(place: Place) -> dict:
    hidden, head, labels = head_inputs(place, place.pick(1000, 50))
    weights, bias = torch.rand(len(hidden), device=place.device), torch.randn(len(head), device=place.device)
    found = head_losses(hidden, head, labels, {"ce": 1.0}, bias=bias)
    found.loss.backward(weights)

    def exact(x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logits = x @ head64.T
        return torch.nn.functional.cross_entropy(logits + bias.double(), labels[part], reduction="none"), logits

    head64 = head.double()
    return judged(hidden, found, weights, exact)


def divergence(place: Place, kind: str) -> dict:
    hidden, head, _ = head_inputs(place, place.pick(1000, 50))
    states, weights = place.normal(place.pick(400, 20), head.shape[1]), torch.rand(len(hidden), device=place.device)
    rows = torch.randint(len(states), (len(hidden),))
    found = head_losses(hidden, head, None, {kind: 1.0}, teacher=Teacher(states, rows, AS_THEY_COME))
    found.loss.backward(weights)

    def exact(x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logits, target = x @ head64.T, states[rows[part]].double() @ head64.T
        p, q = target.softmax(-1), logits.softmax(-1)
        kl = (p * (target.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
        overlap = torch.minimum(p, q).sum(-1)
        share = {"kl": 1.0, "tv": 0.0, "lk": torch.exp(-3 * overlap.detach())}[kind]
        return share * kl + (1 - share) * (1 - overlap), logits

    head64 = head.double()
    return judged(hidden, found, weights, exact)


def judged(hidden: Tensor, found: HeadLosses, weights: Tensor, exact) -> dict:
    """Against float64 in chunks of rows. Logits of size 5 are rounded to 2^-6, which moves a loss by as much and a gradient by 1%."""
    values, best, gradients = [], [], []
    for start in range(0, len(hidden), 100):
        part = slice(start, start + 100)
        x = hidden.detach()[part].double().requires_grad_()
        each, logits = exact(x, part)
        each.backward(weights[part].double())
        values.append(each.detach())
        best.append(logits.detach().argmax(-1))
        gradients.append(x.grad)
    value = float((found.loss.detach().double() - torch.cat(values)).abs().max())
    gradient, agree = relative(hidden.grad, torch.cat(gradients)), float((found.predictions == torch.cat(best)).double().mean())
    return {"ok": value <= 0.05 and gradient <= 0.02 and agree >= 0.95, "value": value, "gradient": gradient, "same_argmax": agree}


def head_speed(place: Place) -> dict:
    """Forward and backward at the scored rows of a step of Qwen3-8B with 512 anchors; two products of 2 r H V each."""
    hidden, head, labels = head_inputs(place, place.pick(7680, 50))
    flops, upstream = 4 * len(hidden) * head.numel(), torch.rand(len(hidden), device=place.device)
    seconds = place.seconds(lambda: head_losses(hidden, head, labels, {"ce": 1.0}).loss.backward(upstream), times=5, warm_up=2)
    numbers = {"cross-entropy": {"ms": 1000 * seconds, "tflops": flops / seconds / 1e12, **place.peak()}}
    rows = torch.arange(len(hidden)) // 4
    teacher = Teacher(place.normal(place.pick(2048, 20), head.shape[1]), rows, AS_THEY_COME)
    work = partial(head_losses, hidden, head, None, {"kl": 1.0}, teacher=teacher)
    seconds = place.seconds(lambda: work().loss.backward(upstream), times=5, warm_up=2)
    return numbers | {"kl": {"ms": 1000 * seconds, "target_rows": int(rows[-1]) + 1}}
