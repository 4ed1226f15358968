"""Prints prepared samples, so that anyone can see with their own eyes what is supervised."""

from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from torchspec.chat.format import ChatFormat
from torchspec.data.dataset import PromptDataset
from torchspec.records import Prompt

STYLES = {False: "dim", True: "green"}


def show(dataset_folder: Path, n: int, console: Console, trust_remote_code: bool = False) -> None:
    dataset = PromptDataset(dataset_folder)
    manifest = dataset.manifest
    chat = ChatFormat.load(Path(manifest.target), manifest.thinking, manifest.last_turn_only, trust_remote_code)
    for i in range(min(n, len(dataset))):
        prompt = dataset[i]
        console.print(Text(_header(prompt, dataset.where(i)), style="bold"))
        console.print(_body(prompt, chat.tokenizer), soft_wrap=True)
        console.print()


def _header(prompt: Prompt, where: str) -> str:
    length, supervised = len(prompt.ids), int(prompt.loss_mask.sum())
    return f"sample {prompt.index} · {where} · {length} tokens · {supervised} supervised ({supervised / length:.0%})"


def _body(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Decoded in runs of equal mask and not token by token, because one character may span several tokens."""
    text = Text()
    for supervised, run in groupby(zip(prompt.ids.tolist(), prompt.loss_mask.tolist(), strict=True), key=lambda pair: pair[1]):
        decoded = tokenizer.decode([token for token, _ in run], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text.append(decoded.replace("\n", "⏎\n"), style=STYLES[supervised])
    return text
