"""The whole way in a minute: one answer of the target is learned by heart, and the exported draft must then draft every block of it.

    plain decode -> prepare -> train on that one sample -> checkpoint -> export -> load -> τ = B offline -> decode: the same tokens

It trains the run's own draft with the run's own target, in this process, and fails where any border of a real run would.
"""

import json
import time
from pathlib import Path

import torch

from torchspec.acceptance.walk import Acceptance
from torchspec.capture.base import CaptureSpec
from torchspec.capture.config import InferenceConfig
from torchspec.capture.hf import HFCapture
from torchspec.chat.format import ChatFormat
from torchspec.config import RunConfig
from torchspec.data.config import DatasetConfig
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import load_pair
from torchspec.decode.sequence import Answer, Difference, first_difference, plain_decode, speculative_decode
from torchspec.doctor.finding import Finding
from torchspec.export.hf import export_checkpoint
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.records import Prompt
from torchspec.training import checkpoints
from torchspec.training.config import EvaluationConfig, TrackingConfig, TrainingConfig
from torchspec.training.loop import train

BLOCKS, STEPS = 2, 100  # learned by heart: an answer of 1 + BLOCKS x B tokens
QUESTION = [{"role": "user", "content": "Tell me something about the sea."}]
NEVER: set[int] = set()  # the answer is cut by its length alone


def rehearse(config: RunConfig, folder: Path, block_size: int, scratch: Path) -> list[Finding]:
    """block_size: of the method, most tokens committed per target forward."""
    started = time.perf_counter()
    prompt, plain = _answer(config, folder, 1 + BLOCKS * block_size)
    (scratch / "sample.jsonl").write_text(json.dumps({"prompt_ids": prompt, "response_ids": plain.ids}) + "\n")
    run = _one_sample_run(config, folder, scratch)
    train(run)
    draft = export_checkpoint(checkpoints.best(run.checkpoints), scratch / "draft")
    pair = load_pair(draft, str(folder), config.model.dtype, config.model.device, config.model.trust_remote_code)
    ids = torch.tensor(prompt + plain.ids)
    offline = evaluate_offline(pair.method, pair.model, pair.target, [Prompt(0, ids, torch.arange(len(ids)) >= len(prompt))])
    speculative = speculative_decode(pair.target, pair.method.drafter(pair.model), ids[: len(prompt)], len(plain.ids), NEVER)
    difference = first_difference(pair.target, ids[: len(prompt)], plain.ids, speculative.ids)
    decoded = Acceptance(block_size).add_answer(speculative.accepted, len(speculative.ids))
    return [
        _tau(offline.tau, block_size),
        Finding("rehearsal", "export", f"written, read back and loaded; {time.perf_counter() - started:.0f} s for everything"),
        _decode(decoded.tau, offline.tau, difference),
    ]


def _tau(tau: float, block_size: int) -> Finding:
    check, found = "one sample by heart", f"τ {tau:.2f} of {block_size} after {STEPS} steps"
    if tau == block_size:
        return Finding("rehearsal", check, found)
    return Finding("rehearsal", check, found, "bad", "a draft that cannot learn one sample sees the wrong features, labels or positions")


def _decode(tau: float, offline_tau: float, difference: Difference | None) -> Finding:
    if difference is None and tau == offline_tau:
        return Finding("rehearsal", "decode", f"τ {tau:.2f}, identical to plain decoding")
    if difference is None:
        found, fix = f"τ {tau:.2f}, but {offline_tau:.2f} offline", "drafting with a cache differs from training"
    elif difference.tie:  # what follows is another text, which the draft has not learned
        return Finding("rehearsal", "decode", f"identical to plain decoding up to token {difference.position}, a tie of two logits")
    else:
        found = f"parted from plain decoding at token {difference.position}, where the logits are {difference.gap:.3f} apart"
        fix = "the target answers otherwise when it verifies a block: its cache or masks differ"
    return Finding("rehearsal", "decode", found, "bad", fix)


def _answer(config: RunConfig, folder: Path, tokens: int) -> tuple[list[int], Answer]:
    """The prompt and the target's greedy answer to it."""
    chat = ChatFormat.load(folder, config.dataset.thinking, False, config.model.trust_remote_code)
    prompt = chat.tokenizer(chat.render(QUESTION, add_generation_prompt=True), add_special_tokens=False).input_ids
    spec = CaptureSpec(
        folder,
        (0,),
        resolve_dtype(config.model.dtype),
        resolve_device(config.model.device),
        trust_remote_code=config.model.trust_remote_code,
    )
    return prompt, plain_decode(HFCapture(spec), torch.tensor(prompt), tokens, NEVER)


def _one_sample_run(config: RunConfig, folder: Path, scratch: Path) -> RunConfig:
    return RunConfig(
        output_dir=str(scratch / "run"),
        model=config.model.model_copy(update={"target_model_path": str(folder)}),
        draft=config.draft,
        dataset=DatasetConfig(train_data_path=str(scratch / "sample.jsonl"), thinking=config.dataset.thinking),
        training=TrainingConfig(num_epochs=STEPS, learning_rate=1e-3, min_lr=1e-4, save_interval=STEPS),
        inference=InferenceConfig(cache_gib=1.0),
        evaluation=EvaluationConfig(interval=STEPS),
        tracking=TrackingConfig(log_interval=STEPS // 4),
    )
