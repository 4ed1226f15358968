"""A training step and an evaluation on a GPU's path through the code: as on a CPU, on one device, and without a wait in a step.

At a wait the GPU runs dry while the CPU catches up.
"""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config

from tests.cuda.pretended import DEVICE, PretendedDevice, on_host
from tests.cuda.runs import batch_of, method_of, run_of, width_of
from tests.cuda.stand_ins import kernels_replaced, plain_flex
from torchspec.acceptance.sampling import Sampler
from torchspec.config import RunConfig
from torchspec.decode.offline import evaluate_offline
from torchspec.nn import loss_tiles, losses
from torchspec.nn.logits import LogitLaw
from torchspec.nn.losses import Correction, Teacher, head_losses
from torchspec.nn.send import send
from torchspec.records import Batch, Features, Prompt
from torchspec.training.build import Run
from torchspec.training.loop import Window

DFLASH = {"num_layers": 2, "block_size": 4, "num_anchors": 8}
EAGLE3 = {"method": "eagle3", "ttt_length": 3, "num_anchors": 8}
PEAGLE = {"method": "peagle", "num_layers": 2, "num_depths": 4, "num_anchors": 8}
NEGATIVES, PRUNED = DFLASH | {"loss_negatives": 32}, EAGLE3 | {"draft_vocab_size": 128}

DRAFTS = pytest.mark.parametrize(
    "draft", (DFLASH, NEGATIVES, EAGLE3, PRUNED, PEAGLE), ids=("dflash", "negatives", "eagle3", "pruned", "peagle")
)
WAITS: dict[str, int] = {}  # "operation in function" -> times in a step: none
TARGET = Qwen3Config(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)
CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch) -> PretendedDevice:
    kernels_replaced(monkeypatch, plain_flex, loss_tiles)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)  # a parameter cannot become another class
    tensor = torch.tensor  # makes its copy where no mode sees it
    monkeypatch.setattr(torch, "tensor", lambda data, device="cpu", **options: tensor(data, **options).to(device))
    with torch.autograd.set_multithreading_enabled(False), PretendedDevice() as device:  # a thread for the backward pass has no mode
        yield device


def small_run(draft: dict, device: torch.device) -> Run:
    """In float32, so that both devices agree up to the order of sums."""
    config = RunConfig(
        output_dir="none", model={"target_model_path": "none", "dtype": "float32"}, draft=draft, dataset={"train_data_path": "none"},
        training={"compile": False},
    )  # fmt: skip
    method = method_of(config, TARGET, *(normal((TARGET.vocab_size, TARGET.hidden_size), seed).to(device) for seed in (0, 1)))
    return run_of(config, method, method.build(torch.Generator().manual_seed(0)).to(device), device)


def normal(size: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def small_batch(run: Run, lengths: tuple[int, ...], prompt: int) -> Batch:
    return batch_of(run.method, lengths, prompt, normal((sum(lengths), width_of(run.method)), 3).to(run.world.device))


@DRAFTS
def test_a_training_step(device, draft):
    runs, windows = [small_run(draft, where) for where in (DEVICE, CPU)], []
    for run in runs:
        batch = small_batch(run, (40, 33), 10)
        device.syncs.clear()
        windows.append(Window())
        windows[-1].backward(run, batch, seed=0, progress=0.0)
        windows[-1].update(run, 1e-3)
        if run.world.device == DEVICE:
            assert dict(device.syncs) == WAITS
    there, here = ([on_host(window.grad_norm), *map(on_host, window.metrics.sums["loss"])] for window in windows)
    torch.testing.assert_close(there, here)
    there, here = ([on_host(weight) for weight in run.model.parameters()] for run in runs)
    torch.testing.assert_close(there, here)


def test_losses_of_a_corrected_draft(device, monkeypatch):
    """All kinds at once, several chunks forward and backward."""
    monkeypatch.setattr(losses, "CUDA_CHUNK_ROWS", 32)
    there, here = (corrected_losses(where) for where in (DEVICE, CPU))
    assert dict(device.syncs) == WAITS
    torch.testing.assert_close([on_host(x) for x in there], here)


def corrected_losses(device: torch.device) -> list[Tensor]:
    hidden, states, head, factor, readout = (
        send(normal(size, n), device) for n, size in enumerate(((70, 8), (9, 8), (50, 8), (70, 4), (50, 4)))
    )
    trained = [x.detach().requires_grad_() for x in (hidden, factor, readout)]
    teacher, labels = Teacher(states, torch.arange(70) % 9, LogitLaw(0.5)), send(torch.arange(70) % 50, device)
    mixture, correction = {"ce": 0.1, "kl": 1.0, "tv": 1.8, "lk": 1.0}, Correction(*trained[1:])
    found = head_losses(trained[0], head, labels, mixture, teacher=teacher, correction=correction)
    (found.loss * found.overlap).sum().backward()
    return [found.loss.detach(), found.overlap, found.cross_entropy, found.predictions, *(x.grad for x in trained)]


@DRAFTS
def test_an_evaluation(device, draft):
    there, here = (evaluation(small_run(draft, where)) for where in (DEVICE, CPU))
    torch.testing.assert_close(there, here)


def evaluation(run: Run) -> tuple[float, list[Tensor]]:
    """Tau of an answer, and what the draft proposes and believes, at once and step by step."""
    draft, batch = run.whole_draft(), small_batch(run, (60,), 20)
    prompt, ids = Prompt(0, batch.ids, batch.loss_mask), batch.ids.to(run.world.device)
    features = Features(Prompt(0, ids, prompt.loss_mask), batch.context, run.method.layer_ids, "random")
    anchors = torch.arange(20, 40, device=run.world.device)
    with torch.inference_mode():
        tau = evaluate_offline(run.method, draft, Captured(features), [prompt]).tau
        proposed = run.method.propose(draft, features, anchors)
        believed = run.method.text_log_probabilities(draft, features, anchors, 1.0)
        drafter = run.method.drafter(draft)
        drafter.extend(ids[:10], batch.context[:10])
        drafted, _ = drafter.propose(5, Sampler(0.0, 0))
    return tau, [on_host(x) for x in (proposed, believed, drafted)]


class Captured:
    """A target that was run before."""

    def __init__(self, features: Features):
        self.features = features

    def capture(self, prompt: Prompt) -> Features:
        return Features(prompt, self.features.context, self.features.layer_ids, self.features.producer)
