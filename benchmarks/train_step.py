"""What one optimizer step costs, at named shapes, with random weights and features and no target.

    python benchmarks/train_step.py smollm2 --threads 2
    python benchmarks/train_step.py smollm2 --threads 1 --peer speculators --peer-path FOLDER
    python benchmarks/train_step.py qwen3-8b-256 --device cuda

Prints one JSON object and writes it to benchmarks/results/train_step-NAME.json. A step is the loop's own: anchors, forward, loss,
backward, division, clipping, optimizer. Medians of --steps steps after two of warm-up. The parts are timed by themselves, forward and
backward; "layers and the rest" is what is left of the step. The peer, pip's speculators, takes the same batch in turns with ours.

FLOPs count multiplications and additions of matrix products that end in a loss of weight above zero, nothing for norms, softmaxes
or the optimizer. Forward, for T context rows before some block's anchor, R rows of valid blocks, S of them scored, pairs P = rows
times the keys that each sees (P_S: of scored rows), projections q, k, v, o and m = the MLP's three:

    fc 2 T K H_t H  +  D 2 T (k + v)  +  D 2 R (k + v)  +  2 ((D-1) R + S) (q + o + m)  +  4 ((D-1) P + P_S) heads d  +  2 S H V

The backward pass costs twice as much again for trained matrices and attention, once for the head, which has no gradient, and once
for fc, whose input has none. EAGLE-3: the same with one layer over 2H, S rows in each step, and the head again for each target row.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3Config

from torchspec.config import RunConfig
from torchspec.methods.base import method_class
from torchspec.methods.block.attention import attention
from torchspec.methods.block.format import draft_config
from torchspec.methods.blocks import block_labels, sample_anchors
from torchspec.methods.eagle3.format import draft_config as eagle3_config
from torchspec.methods.eagle3.method import chains
from torchspec.methods.vocabulary import DraftVocabulary, whole_vocabulary
from torchspec.nn.attention import BlockLayout
from torchspec.nn.logits import AS_THEY_COME
from torchspec.nn.losses import Teacher, head_losses
from torchspec.records import Batch
from torchspec.target.frozen import FrozenTarget
from torchspec.training.build import Run
from torchspec.training.distributed import World, parallelise
from torchspec.training.loop import Window
from torchspec.training.optim import build_optimizers

WARM_UP, CEILING_SIZE = 2, {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    target_layers: int
    captured: tuple[int, ...]
    layers: int
    block: int
    anchors: int
    lengths: tuple[int, ...]
    prompt: int  # first tokens of each document, not supervised
    seen: int  # tokens of the vocabulary that the data holds, for --negatives
    draft_vocabulary: int | None = None  # of EAGLE-3, its first tokens; none: all


QWEN3_8B = (4096, 12288, 32, 8, 128, 151936, 36, (1, 9, 17, 25, 33), 5, 16)
SHAPES = {
    "smollm2": Shape(576, 1536, 9, 3, 64, 49152, 30, (1, 14, 27), 2, 6, 96, (352, 352), 96, 4000),
    "qwen3-8b-256": Shape(*QWEN3_8B, 256, (768, 768), 128, 100_000),
    "qwen3-8b-512": Shape(*QWEN3_8B, 512, (2048,), 256, 100_000),
}


def random_batch(shape: Shape, width: int, device: torch.device) -> Batch:
    ids = torch.randint(shape.seen, (sum(shape.lengths),))
    mask = torch.cat([torch.arange(length) >= shape.prompt for length in shape.lengths])
    context = torch.randn(len(ids), width, device=device).to(torch.bfloat16)
    return Batch(ids, mask, context, shape.lengths, tuple(range(len(shape.lengths))), 0).check()


class Ours:
    """A run of this project without its data and its target."""

    def __init__(self, shape: Shape, method: str, optimizer: str, negatives: int | None, device: torch.device, compile: bool = False):
        self.shape, self.device = shape, device
        layers = shape.captured if method == "dflash" else shape.captured[:3]
        options = {"method": method, "num_anchors": shape.anchors, "target_layer_ids": layers}
        sizes = {"num_layers": shape.layers, "block_size": shape.block, "loss_negatives": negatives}
        options |= sizes if method == "dflash" else {"ttt_length": shape.block - 1, "draft_vocab_size": shape.draft_vocabulary}
        config = RunConfig(
            output_dir="unused", model={"target_model_path": "none"}, draft=options, dataset={"train_data_path": "none"},
            training={"optimizer": optimizer, "compile": compile},
        )  # fmt: skip
        table = torch.randn(shape.vocabulary, shape.hidden, device=device).mul_(shape.hidden**-0.5).to(torch.bfloat16)
        norm = torch.nn.RMSNorm(shape.hidden, dtype=torch.bfloat16, device=device).requires_grad_(False)
        self.target = FrozenTarget(Path("none"), qwen3(shape), table, table, norm)
        counts = (torch.arange(shape.vocabulary) < shape.seen).float()
        if method == "dflash":
            draft = draft_config(config.draft, self.target.config, tuple(table.shape), shape.vocabulary - 1)
            self.method = method_class(method)(draft, self.target, config.draft, counts)
        else:
            draft = eagle3_config(config.draft, self.target)
            vocabulary, kept = whole_vocabulary(self.target), shape.draft_vocabulary
            if kept is not None:
                vocabulary = DraftVocabulary(vocabulary.head[:kept], vocabulary.ids[:kept])
            self.method = method_class(method)(draft, self.target, config.draft, vocabulary)
        model = self.method.build(torch.Generator().manual_seed(0)).to(device)
        world = World(0, 1, device)
        compute, optimizers = parallelise(model, world, config.training, torch.bfloat16), build_optimizers(model, config.training)
        self.run = Run(config, None, None, [], frozenset(), self.method, model, compute, optimizers, None, None, world)
        self.batch = random_batch(shape, shape.hidden * len(self.method.layer_ids), device)
        self.window = Window()

    def gradients(self, seed: int) -> None:
        self.window.backward(self.run, self.batch, seed, progress=0.0)

    def update(self) -> None:
        self.window.update(self.run, 1e-4)

    def step(self, seed: int) -> None:
        self.gradients(seed)
        self.update()

    def layout(self, seed: int) -> BlockLayout:
        """On the host."""
        layout = sample_anchors(self.batch, self.shape.anchors, self.shape.block, seed)
        return layout if self.run.config.draft.method == "dflash" else chains(layout)


def qwen3(shape: Shape) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, vocab_size=shape.vocabulary,
        num_hidden_layers=shape.target_layers,
    )  # fmt: skip


def flops(ours: Ours) -> dict[str, float]:
    """Of one step, as the formula above says; for seed 0, whose anchors stand for all."""
    s, layout, method = ours.shape, ours.layout(0), ours.run.config.draft.method
    mask = block_labels(ours.batch, layout).mask  # [N, A, B]
    anchors, blocks = layout.anchors * layout.valid, int(layout.valid.sum())
    context, scored = int(anchors.max(1).values.sum()), int(mask.sum())
    q, kv = s.hidden * s.heads * s.head_dim, 2 * s.hidden * s.kv_heads * s.head_dim
    mlp, width = 3 * s.hidden * s.intermediate, s.heads * s.head_dim
    captured = len(ours.method.layer_ids) - (method == "eagle3")
    head_rows = len(ours.method.vocabulary.draw(torch.Generator()).head) if method == "dflash" else len(ours.method.vocabulary.head)
    fc = 4 * context * captured * s.hidden**2
    if method == "eagle3":
        own = torch.arange(s.block - 1, device=mask.device)
        pairs = int(((anchors[:, :, None] + own) * mask[:, :, 1:]).sum())
        later = int(mask[:, :, 2:].sum())
        layers = 6 * (2 * context * kv + 2 * later * kv + scored * (3 * q + mlp))
        rows = (layout.starts[:, None, None] + anchors[:, :, None] + own)[mask[:, :, 1:]]
        head = (4 * scored + 2 * len(rows.unique())) * s.hidden * head_rows
        return {"context projection": fc, "attention": 12 * pairs * width, "layers and the rest": layers, "head and loss": head}
    rows, earlier = blocks * s.block, s.layers - 1
    keys = (anchors + s.block * layout.valid)[:, :, None]
    pairs = earlier * s.block * int(keys.sum()) + int((keys * mask).sum())
    layers = 6 * (s.layers * (context + rows) * kv + (earlier * rows + scored) * (2 * q + mlp))
    return {
        "context projection": fc, "attention": 12 * pairs * width, "layers and the rest": layers,
        "head and loss": 4 * scored * s.hidden * head_rows,
    }  # fmt: skip


def parts(ours: Ours) -> dict[str, Callable[[], None]]:
    """What the breakdown times by itself, each forward and backward."""
    s, layout, model, device = ours.shape, ours.layout(0), ours.run.model, ours.device
    mask = block_labels(ours.batch, layout).mask
    dflash, scored, total = ours.run.config.draft.method == "dflash", int(mask.sum()), sum(s.lengths)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(torch.bfloat16).requires_grad_()

    features = ours.batch.context[:, : model.fc.in_features]
    weight = model.fc.weight.detach().to(torch.bfloat16).requires_grad_()
    hidden, weights = normal(scored, s.hidden), torch.rand(scored, device=device)

    def project() -> None:
        torch.nn.functional.linear(features, weight).backward(torch.ones(total, s.hidden, dtype=torch.bfloat16, device=device))

    def head() -> None:
        if dflash:
            rows = ours.method.vocabulary.draw(torch.Generator().manual_seed(0))
            labels = torch.randint(s.seen, (scored,), device=device)
            head_losses(hidden, rows.head, rows.index[labels], {"ce": 1.0}, bias=rows.bias).loss.backward(weights)
            return
        own = torch.arange(s.block - 1)
        rows = (layout.starts[:, None, None] + layout.anchors[:, :, None] + own)[mask[:, :, 1:]]
        teacher = Teacher(ours.method.target.normed(ours.batch.context[:, -s.hidden :]), rows, AS_THEY_COME)
        head_losses(hidden, ours.method.vocabulary.head, None, {"kl": 1.0}, teacher=teacher).loss.backward(weights)

    blocks, context = mask[:, :, 0].numel(), [normal(total, s.kv_heads, s.head_dim) for _ in range(2)]
    q, own = normal(blocks * s.block, s.heads, s.head_dim), [normal(blocks * s.block, s.kv_heads, s.head_dim) for _ in range(2)]

    def attend() -> None:
        visible = attention(layout.to(device), ours.method.sights)
        for layer in range(s.layers):
            visible(layer)(q, *context, *own).sum().backward()

    timed = {"context projection": project, "head and loss": head}
    return timed | {"attention": attend} if dflash else timed  # EAGLE-3's attention of each step differs: it stays in the rest


def seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], None], device: torch.device, times: int) -> float:
    for _ in range(WARM_UP):
        work()
    return statistics.median(seconds(work, device) for _ in range(times))


def matmul_ceiling(device: torch.device) -> float:
    """FLOP/s of a square bfloat16 product: the best of ten."""
    n = CEILING_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def peak_memory(device: torch.device) -> int:
    """Bytes allocated on a GPU; on a CPU resident in this process, which has then held nothing but this run."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(arguments: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device, shape = torch.device(arguments.device), SHAPES[arguments.shape]
    ours = Ours(shape, arguments.method, arguments.optimizer, arguments.negatives, device, arguments.compile)
    rivals, times = {"ours": ours.step}, {"ours": [], "peer": []}
    for seed in range(WARM_UP):
        ours.step(seed)
    memory = {"ours": peak_memory(device)}
    if arguments.peer:
        from train_step_peer import Speculators

        peer = Speculators(shape, ours.batch, device, arguments.peer_path)
        rivals["peer"] = peer.step
        for seed in range(WARM_UP):
            peer.step(seed)
        memory["peer, or ours if larger"] = peak_memory(device)
    for seed in range(WARM_UP, WARM_UP + arguments.steps):
        for name, step in rivals.items():
            times[name].append(seconds(lambda step=step, seed=seed: step(seed), device))
    whole = statistics.median(times["ours"])
    breakdown = {name: median_seconds(work, device, 5) for name, work in parts(ours).items()}
    breakdown["optimizer"] = statistics.median(_optimizer_seconds(ours, device) for _ in range(5))
    breakdown["layers and the rest"] = whole - sum(breakdown.values())
    counted, ceiling = flops(ours), matmul_ceiling(device)
    result = {
        "command": "python benchmarks/train_step.py " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__, "shape": vars(shape), "seconds": whole, "all_seconds": times["ours"],
        "tokens_per_second": sum(shape.lengths) / whole, "samples_per_second": len(shape.lengths) / whole,
        "flops": counted, "flops_per_second": sum(counted.values()) / whole, "matmul_ceiling": ceiling,
        "mfu": sum(counted.values()) / whole / ceiling, "peak_memory": memory,
        "breakdown": {name: {"seconds": value, "share": value / whole} for name, value in breakdown.items()},
    }  # fmt: skip
    if arguments.peer:
        result |= {"peer": arguments.peer, "peer_seconds": statistics.median(times["peer"]), "peer_all_seconds": times["peer"]}
        result["ratio"] = result["peer_seconds"] / whole
    return result


def _optimizer_seconds(ours: Ours, device: torch.device) -> float:
    ours.gradients(0)
    return seconds(ours.update, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--method", choices=("dflash", "eagle3"), default="dflash")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--negatives", type=int, help="draft.loss_negatives; none: softmax over all tokens")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="training.compile, which is the default on a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peer", choices=("speculators",))
    parser.add_argument("--peer-path", help="folder of `pip install --target` that holds the peer and what it imports")
    parser.add_argument("--name", help="of the results file; default: the arguments")
    arguments = parser.parse_args()
    result = measure(arguments)
    name = arguments.name or f"{arguments.shape}-{arguments.method}-{arguments.optimizer}-{arguments.threads}"
    (Path(__file__).parent / "results" / f"train_step-{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    json.dump(result, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
