"""Rewrite the assistant turns of conversations with the target itself: the text that a draft must learn is the text that is served.

Every assistant turn becomes one line of the output, `{id, messages, prompt_ids, response_ids, finish}`: the ids that the
target read and wrote, so that nothing is tokenised again. A killed run goes on where it was: finished rows are kept.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, PreTrainedModel

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.data.chat import ChatFormat
from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.encode import Options
from torchspec.data.formats import Row
from torchspec.data.sources import read_rows
from torchspec.log import console
from torchspec.nn.packed import pack_linears

SHARE_SAMPLES = 32  # samples that the on-policy share is measured on
WINDOW = 32  # batches whose conversations are sorted by length together: little padding, bounded memory


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float  # 0 = greedy
    seed: int


class Regenerator:
    """The target with its chat template, answering a batch of conversations at a time."""

    def __init__(self, chat: ChatFormat, model: PreTrainedModel, sampling: Sampling):
        self.chat, self.tokenizer, self.model, self.sampling = chat, chat.tokenizer, model, sampling
        eos = model.generation_config.eos_token_id
        self.stop = set(eos) if isinstance(eos, list) else {eos}
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.stop)

    @classmethod
    def load(
        cls,
        target: Path,
        sampling: Sampling,
        dtype: torch.dtype,
        device: torch.device,
        thinking: bool | None,
        trust_remote_code: bool,
    ) -> "Regenerator":
        model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, trust_remote_code=trust_remote_code)
        model = pack_linears(model.to(device).eval().requires_grad_(False))
        return cls(ChatFormat.load(target, thinking, False, trust_remote_code), model, sampling)

    def answer(self, conversations: list[tuple[str, list[dict]]]) -> list[dict]:
        """Rows for all turns of (id, messages) conversations; turn r of all of them is one generation batch."""
        rows: list[dict] = []
        histories = [(key, [], _questions(messages)) for key, messages in conversations]
        while histories := [h for h in histories if h[2]]:
            for _key, history, questions in histories:
                history += questions.pop(0)
            prompts = [
                self.tokenizer(self.chat.render(history, add_generation_prompt=True), add_special_tokens=False).input_ids
                for _, history, _ in histories
            ]
            answers = self.generate(prompts)
            for (key, history, _), prompt, response in zip(histories, prompts, answers, strict=True):
                history.append({"role": "assistant", "content": self.tokenizer.decode(response, skip_special_tokens=True)})
                turn = sum(m["role"] == "assistant" for m in history)
                finish = "stop" if response[-1] in self.stop else "length"
                rows.append(
                    {
                        "id": f"{key}#{turn}",
                        "messages": list(history),
                        "prompt_ids": prompt,
                        "response_ids": response,
                        "finish": finish,
                    }
                )
        return rows

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """Left-padded batch generation; a response ends with its stop token, or at max_new_tokens without one."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        sampled = self.sampling.temperature > 0
        how = {"do_sample": True, "temperature": self.sampling.temperature, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
        torch.manual_seed(self.sampling.seed + ids.numel())
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.sampling.max_new_tokens, pad_token_id=self.pad, **how
        )
        return [self._until_stop(row) for row in out[:, width:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        end = next((i + 1 for i, token in enumerate(ids) if token in self.stop), len(ids))
        return ids[:end]


def _questions(messages: list[dict]) -> list[list[dict]]:
    """Messages between assistant turns, in groups that each end where the assistant is to speak."""
    groups, current = [], []
    for message in messages:
        if message["role"] != "assistant":
            current.append(message)
        elif current:
            groups.append(current)
            current = []
    return groups + ([current] if current else [])


def regenerate(inputs: list[str], out: Path, regenerator: Regenerator, batch_size: int, limit: int | None) -> dict:
    """Appends to `out` until every readable conversation is answered. Returns counts; unreadable rows are listed in `out`.rejected."""
    done = finished_conversations(out)
    rejected: Counter[str] = Counter()
    counts = {"already_there": len(done), "rows": 0, "tokens": 0, "stopped": 0, "seconds": 0.0}
    listing = out.with_name(out.name + ".rejected")
    out.parent.mkdir(parents=True, exist_ok=True)
    todo = (row for row in islice(read_rows(inputs), limit) if row.where not in done)
    columns = (
        TextColumn("regenerate"),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with out.open("a") as sink, listing.open("w") as refused, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None if limit is None else max(0, limit - len(done)))
        for batch in _batches(todo, batch_size, refused, rejected):
            started = time.perf_counter()
            rows = regenerator.answer(batch)
            counts["seconds"] += time.perf_counter() - started
            sink.write("".join(json.dumps(row) + "\n" for row in rows))
            sink.flush()  # a batch is the unit of loss when the run is killed
            counts["rows"] += len(rows)
            counts["tokens"] += sum(len(row["response_ids"]) for row in rows)
            counts["stopped"] += sum(row["finish"] == "stop" for row in rows)
            progress.update(task, advance=len(batch), description=f"{counts['tokens'] / counts['seconds']:,.0f} tok/s")
    if not rejected:
        listing.unlink()
    return {**counts, "rejected": dict(rejected)}


def _batches(rows: Iterator[Row], batch_size: int, refused, rejected: Counter) -> Iterator[list[tuple[str, list[dict]]]]:
    while window := list(islice(rows, WINDOW * batch_size)):
        good = []
        for row in window:
            problem = row.problem or _unanswerable(row)
            if problem:
                rejected[problem] += 1
                refused.write(json.dumps({"where": row.where, "reason": problem}) + "\n")
            else:
                good.append((row.where, row.messages))
        good.sort(key=lambda item: sum(len(m["content"] or "") for m in item[1]))
        for start in range(0, len(good), batch_size):
            yield good[start : start + batch_size]


def _unanswerable(row: Row) -> str | None:
    if row.tools:
        return "the row has tools, which nobody can call here; remove them or keep the row as it is"
    return None if row.messages and _questions(row.messages) else "no user turn to answer"


def finished_conversations(out: Path) -> set[str]:
    """Ids of the conversations that `out` already holds; a last line cut by a kill is removed from the file."""
    if not out.is_file():
        return set()
    text = out.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    turns = [json.loads(line)["id"] for line in whole.splitlines()]
    return {turn.rsplit("#", 1)[0] for turn in turns}


def report(counts: dict, out: Path) -> None:
    rate = counts["tokens"] / counts["seconds"] if counts["seconds"] else 0
    console.print(
        f"{out}: {counts['rows']} answers written ({counts['already_there']} conversations were there), "
        f"{counts['tokens']:,} tokens, {rate:,.0f} tok/s; "
        f"{counts['stopped']} ended by themselves, the rest at the cap"
    )
    for reason, count in counts["rejected"].items():
        console.print(f"  rejected {count}: {reason} (listed in {out}.rejected)", markup=False)


def report_share(
    inputs: list[str], target: Path, dtype: torch.dtype, device: torch.device, thinking: bool | None, trust_remote_code: bool
) -> None:
    """Prints how much of each input's supervised text the target would have written itself."""
    model = HFCapture(CaptureSpec(target, (0,), dtype, device, trust_remote_code=trust_remote_code))
    for path in inputs:
        with tempfile.TemporaryDirectory() as scratch:
            dataset = open_or_prepare(path, Path(scratch), target, Options(thinking, trust_remote_code=trust_remote_code))
            same, total = on_policy_share(model, dataset, SHARE_SAMPLES)
        console.print(f"{path}: on-policy share {same / total:.1%} ({same} of {total} tokens are the target's own greedy choice)")


@torch.inference_mode()
def on_policy_share(target: HFCapture, dataset: PromptDataset, samples: int) -> tuple[int, int]:
    """(supervised tokens that equal the target's argmax after the true prefix, supervised tokens), over evenly spread samples."""
    same = total = 0
    count = min(samples, len(dataset))
    for i in range(count):
        prompt = dataset[i * len(dataset) // count]
        choices = target.model(input_ids=prompt.ids.to(target.device)[None], use_cache=False).logits[0].argmax(-1).cpu()  # [L]
        supervised = prompt.loss_mask[1:]
        same += int((choices[:-1] == prompt.ids[1:])[supervised].sum())
        total += int(supervised.sum())
    return same, total
