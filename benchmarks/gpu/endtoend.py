"""The whole way of `torchspec train`, `export`, `eval` and `generate`, with a random target of Qwen3-8B's width and two layers.

    target: weights, tokenizer, text that it wrote -> train -> resume -> export -> decode -> eval

Each stage is a check of its own that reads what the one before has written into the scratch folder.
"""

import json
import shutil
from pathlib import Path

import torch
from gpu.place import Place
from transformers import Qwen3Config, Qwen3ForCausalLM

from torchspec.acceptance.sampling import Sampler
from torchspec.acceptance.walk import Acceptance
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import capture_checks
from torchspec.capture.hf import HFCapture
from torchspec.config import RunConfig
from torchspec.data.config import DatasetConfig
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import Pair, load_pair
from torchspec.decode.sequence import Difference, first_difference, plain_decode, speculative_decode
from torchspec.doctor.tiny import write_tiny_target
from torchspec.evaluate.run import Settings, evaluate_draft
from torchspec.export.hf import export_checkpoint
from torchspec.records import Prompt
from torchspec.target.config import ModelConfig
from torchspec.target.frozen import FrozenTarget
from torchspec.training import checkpoints
from torchspec.training.config import EvaluationConfig, TrackingConfig, TrainingConfig
from torchspec.training.loop import train
from torchspec.training.tensors import read_weights

TRAINED_ON, HELD_OUT, PROMPT, ANSWER = 8, 4, 30, 50  # conversations, and tokens of each
STEPS = 60  # enough to learn some of eight answers by heart, so that drafts are accepted
NEVER: set[int] = set()
DRAFTS = {
    "dflash": {"method": "dflash", "num_layers": 1, "block_size": 8},
    "eagle3": {"method": "eagle3", "ttt_length": 4, "draft_vocab_size": 1024},
}


def target(place: Place, method: str) -> dict:
    """The same for both methods, which run in two processes."""
    folder = write_target(place)
    capture = HFCapture(CaptureSpec(folder, (0, 1), torch.bfloat16, place.device))
    vocabulary = len(capture.model.get_input_embeddings().weight)
    texts = []
    for _ in range(TRAINED_ON + HELD_OUT):
        prompt = torch.randint(vocabulary - 1, (PROMPT,))
        texts.append((prompt, torch.tensor(plain_decode(capture, prompt, ANSWER, NEVER).ids)))
    write_rows(place.scratch / "train.jsonl", texts[:TRAINED_ON])
    write_rows(place.scratch / "held_out.jsonl", texts[TRAINED_ON:])
    prompts = [Prompt(i, torch.cat(text), torch.arange(PROMPT + ANSWER) >= PROMPT) for i, text in enumerate(texts)]
    capture_checks(capture, FrozenTarget.load(folder, torch.bfloat16, place.device), prompts)  # raises where one fails
    seconds = place.seconds(lambda: capture.capture_batch(prompts), times=3, warm_up=1)
    distinct = len({int(token) for _, answer in texts for token in answer})
    return {"ok": True, "capture_tokens_per_second": len(prompts) * (PROMPT + ANSWER) / seconds, "distinct_tokens": distinct}


def write_target(place: Place) -> Path:
    """The rehearsal's byte tokenizer; ids beyond it are tokens without a text."""
    folder = write_tiny_target(place.scratch / "target")
    sizes = place.pick(
        {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8},
        {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    )
    config = Qwen3Config(
        **sizes, head_dim=place.pick(128, 16), num_hidden_layers=2, max_position_embeddings=1024, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=257, dtype="bfloat16",
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_rows(file: Path, texts: list) -> None:
    rows = ({"prompt_ids": prompt.tolist(), "response_ids": answer.tolist()} for prompt, answer in texts)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(file: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = map(json.loads, file.read_text().splitlines())
    return [(torch.tensor(row["prompt_ids"]), torch.tensor(row["response_ids"])) for row in rows]


def run_config(place: Place, method: str, out: str) -> RunConfig:
    return RunConfig(
        output_dir=str(place.scratch / out),
        model=ModelConfig(target_model_path=str(place.scratch / "target"), device=str(place.device)),
        draft={**DRAFTS[method], "num_anchors": 32, "target_layer_ids": (0,)},
        dataset=DatasetConfig(train_data_path=str(place.scratch / "train.jsonl"), eval_data_path=str(place.scratch / "held_out.jsonl")),
        training=TrainingConfig(
            num_epochs=STEPS, max_steps=STEPS, micro_batch_size=TRAINED_ON // 2, learning_rate=5e-4, min_lr=1e-4, save_interval=STEPS // 2
        ),
        evaluation=EvaluationConfig(interval=STEPS),
        tracking=TrackingConfig(log_interval=STEPS // 6),
    )


def trained(place: Place, method: str) -> dict:
    config = run_config(place, method, method)
    state = train(config)
    rows = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    losses, tau = [row["loss"] for row in rows if row["kind"] == "train"], [row["block_tau"] for row in rows if row["kind"] == "train"]
    held_out = [row["tau"] for row in rows if row["kind"] == "eval"]
    return {"ok": losses[-1] < losses[0], "steps": state.step, "losses": losses, "block_tau": tau, "held_out_tau": held_out[-1]}


def resumed(place: Place, method: str) -> dict:
    """A run that finds the first run's checkpoint of half the way goes to the end as if it had never stopped."""
    first, second = run_config(place, method, method).checkpoints, run_config(place, method, f"{method}-resumed")
    second.checkpoints.mkdir(parents=True)
    shutil.copytree(checkpoints.folder(first, STEPS // 2), checkpoints.folder(second.checkpoints, STEPS // 2))
    (second.checkpoints / checkpoints.LATEST).write_text(str(STEPS // 2))
    train(second)
    expected, got = (read_weights(checkpoints.folder(root, STEPS)) for root in (first, second.checkpoints))
    difference = max(float((got[name].double() - value.double()).abs().max()) for name, value in expected.items())
    shutil.rmtree(second.output_dir)
    return {"ok": difference == 0.0, "largest_difference": difference}


def decoded(place: Place, method: str) -> dict:
    """Export, load, then what the draft learned by heart: the walk, and decoding, which must be the target's own text."""
    config, draft = run_config(place, method, method), place.scratch / f"{method}-draft"
    export_checkpoint(checkpoints.best(config.checkpoints), draft)
    result = {dtype: _decoded(place, draft, dtype) for dtype in ("float32", "bfloat16")}
    equal = set(result["float32"]["outcomes"]) <= {"identical"} and set(result["bfloat16"]["outcomes"]) <= {"identical", "tie"}
    return {"ok": equal and all(row["sampled_twice_the_same"] for row in result.values()), **result}


def _decoded(place: Place, draft: Path, dtype: str) -> dict:
    pair = load_pair(draft, str(place.scratch / "target"), dtype, str(place.device), False)
    texts, outcomes, total = read_rows(place.scratch / "train.jsonl")[:4], [], Acceptance(pair.method.block_size)
    for prompt, _ in texts:
        plain = plain_decode(pair.target, prompt, ANSWER, NEVER)
        answer = speculative_decode(pair.target, pair.method.drafter(pair.model), prompt, ANSWER, NEVER)
        difference = first_difference(pair.target, prompt, plain.ids, answer.ids)
        outcomes.append(
            "identical" if difference is None else "tie" if difference.tie else f"{difference.gap:.3g} at {difference.position}"
        )
        total.add_answer(answer.accepted, len(answer.ids))
    prompts = [Prompt(i, torch.cat(text), torch.arange(PROMPT + ANSWER) >= PROMPT) for i, text in enumerate(texts)]
    offline = evaluate_offline(pair.method, pair.model, pair.target, prompts).tau
    sampled = [_sampled(pair, texts[0][0]) for _ in range(2)]
    return {
        "outcomes": outcomes, "decoded_tau": total.tau, "offline_tau": offline,
        "sampled_twice_the_same": sampled[0] == sampled[1], "sampled_tokens": len(set(sampled[0])),
    }  # fmt: skip


def _outcome(difference: Difference | None) -> str:
    if difference is None:
        return "identical"
    return "tie" if difference.tie else f"{difference.gap:.3g} apart at token {difference.position}"


def _sampled(pair: Pair, prompt: torch.Tensor) -> list[int]:
    """What `torchspec generate --temperature 1` does."""
    sampler = Sampler(1.0, 0, pair.target.device)
    return speculative_decode(pair.target, pair.method.drafter(pair.model), prompt, ANSWER, NEVER, sampler).ids


def evaluated(place: Place, method: str) -> dict:
    """What `torchspec eval` does: offline, decoding of two prompts together, break-even, report; greedily and at a temperature."""
    numbers = {}
    for temperature, batch_size in ((0.0, 2), (1.0, 1)):
        pair = load_pair(place.scratch / f"{method}-draft", str(place.scratch / "target"), "bfloat16", str(place.device), False)
        settings = Settings(decode=2, max_new_tokens=ANSWER, limit=4, temperature=temperature, batch_size=batch_size)
        out = place.scratch / f"eval-{method}-{temperature:g}-{batch_size}"
        results = evaluate_draft(pair, {"train": str(place.scratch / "train.jsonl")}, out, settings)  # raises on a wrong token
        kept = ("identical", "ties", "mismatches", "tau", "speedup", "plain_tokens_per_second")
        numbers[f"temperature {temperature:g}, {batch_size} together"] = {
            "offline_tau": results["offline"]["tau"], **{key: results["decode"][key] for key in kept},
        }  # fmt: skip
    return {"ok": True, **numbers}


STAGES = {"target": target, "train": trained, "resume": resumed, "decode": decoded, "eval": evaluated}
