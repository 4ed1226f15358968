"""Stream one answer to the terminal, drafted tokens in green (with NO_COLOR underlined), the target's own as they are."""

import torch
from rich.text import Text

from torchspec.acceptance.sampling import Sampler
from torchspec.acceptance.walk import Acceptance
from torchspec.chat.format import ChatFormat
from torchspec.console import console
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import speculative_steps, stop_ids
from torchspec.decode.texts import Texts


def stream_answer(pair: Pair, prompt: str, max_new_tokens: int, thinking: bool | None, sampler: Sampler) -> None:
    chat = ChatFormat.load(pair.folder, thinking, False, pair.target.spec.trust_remote_code)
    text = chat.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    ids, stop = torch.tensor(chat.tokenizer(text, add_special_tokens=False).input_ids), stop_ids(pair.target)
    texts, printed = Texts(chat.tokenizer), 0
    for answer in speculative_steps(pair.target, pair.drafter(), ids, max_new_tokens, stop, sampler):
        for token, drafted in zip(answer.ids[printed:], answer.from_draft[printed:], strict=True):
            if token not in stop:
                say(texts.add(token), drafted)
        printed = len(answer.ids)
    acceptance = Acceptance(pair.method.block_size).add_answer(answer.accepted, len(answer.ids))
    rate = f"{len(answer.ids)} tokens, τ {acceptance.tau:.2f}, {answer.tokens_per_second:.1f} tok/s"
    console.print(f"\n\n{rate}{legend()}", highlight=False)


def say(text: str, drafted: bool) -> None:
    console.print(Text(text, style=_drafted() if drafted else ""), end="", soft_wrap=True)


def legend() -> str:
    return f"; {_drafted()}: proposed by the draft and confirmed by the target" if console.is_terminal else ""


def _drafted() -> str:
    return "underline" if console.no_color else "green"
