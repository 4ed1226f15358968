"""What capturing costs: python benchmarks/capture.py TARGET DATA [SAMPLES]

Features of the first SAMPLES conversations, the three ways interleaved in one run, medians over rounds, bfloat16:

* a plain Transformers forward per conversation that returns all hidden states, as it is done without this project;
* our capture, one conversation at a time: packed matrices on a CPU, no layer above the highest captured one, no head;
* our capture of micro-batches of eight: similar lengths share a forward.

Writes benchmarks/results/capture.json.
"""

import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from in_turns import in_turns
from transformers import AutoModelForCausalLM

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.data.dataset import open_or_prepare
from torchspec.methods.block.format import default_layer_ids
from torchspec.records import Prompt

ROUNDS, LAYERS, BATCH = 5, 3, 8
RESULTS = Path(__file__).parent / "results" / "capture.json"


def main(target: Path, data: str, samples: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval().requires_grad_(False)
    layer_ids = default_layer_ids(model.config.num_hidden_layers, LAYERS)
    capture = HFCapture(CaptureSpec(target, layer_ids, torch.bfloat16))
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_or_prepare(data, Path(scratch), target)
        prompts = [dataset[i] for i in range(min(samples, len(dataset)))]
    ways = {
        "Transformers, one at a time": lambda: [whole(model, prompt, layer_ids) for prompt in prompts],
        "ours, one at a time": lambda: [capture.capture(prompt) for prompt in prompts],
        f"ours, {BATCH} at a time": lambda: [capture.capture_batch(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)],
    }
    seconds = in_turns(ways, ROUNDS + 1)
    tokens = sum(len(prompt.ids) for prompt in prompts)
    rates = {name: tokens / statistics.median(times[1:]) for name, times in seconds.items()}  # the first round warms up
    plain = rates["Transformers, one at a time"]
    result = {
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "samples": len(prompts),
        "tokens": tokens,
        "layers": layer_ids,
        "tokens_per_second": rates,
        "ratio": {name: rate / plain for name, rate in rates.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


@torch.inference_mode()
def whole(model: torch.nn.Module, prompt: Prompt, layer_ids: tuple[int, ...]) -> torch.Tensor:
    states = model(input_ids=prompt.ids[None], use_cache=False, output_hidden_states=True).hidden_states
    return torch.cat([states[z + 1] for z in layer_ids], dim=-1)[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 48)
