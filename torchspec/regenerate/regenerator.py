"""The target at work: it answers the open turns of conversations, a batch at a time, as a server would."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.chat.format import ChatFormat
from torchspec.errors import UserError
from torchspec.files import contents
from torchspec.regenerate.history import parse_answer
from torchspec.rows.conversation import BadRow
from torchspec.target.language_config import positions

NO_ROOM = "too long for the target: prompt and max_new_tokens together"


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float  # 0 = greedy
    seed: int


@dataclass
class Conversation:
    """One conversation on its way: questions are groups of messages that each end where the assistant is to speak."""

    where: str
    questions: list[list[dict]]
    history: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # one per answer
    ended: str | None = None  # "what: which"; why it ends before its last turn, or has no row at all

    @property
    def key(self) -> str:
        return contents.key(self.questions)


class Regenerator:
    """The target with its chat template."""

    def __init__(self, chat: ChatFormat, model: PreTrainedModel, sampling: Sampling):
        self.chat, self.tokenizer, self.model, self.sampling = chat, chat.tokenizer, model, sampling
        self.target = Path(chat.tokenizer.name_or_path)  # the folder that the chat format was loaded from
        self.stop = chat.stop_ids
        self.pad = next((i for i in (self.tokenizer.pad_token_id, *sorted(self.stop)) if i is not None), 0)
        self.positions = positions(self.target)

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
        room = positions(target)
        if room is not None and sampling.max_new_tokens >= room:
            raise UserError(
                f"max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt in the target's {room} positions; give less"
            )
        chat = ChatFormat.load(target, thinking, False, trust_remote_code)
        # loaded as for capture, where missing and damaged weights are refused; which layer is kept does not matter
        return cls(chat, HFCapture(CaptureSpec(target, (0,), dtype, device, trust_remote_code=trust_remote_code)).model, sampling)

    def header(self, target: Path) -> dict:
        """All that decides an answer beside its question. A seed decides nothing where nothing is drawn."""
        sampling = asdict(self.sampling) | ({} if self.sampling.temperature else {"seed": None})
        made_with = {"target": contents.folder_key(target), "dtype": str(self.model.dtype).removeprefix("torch.")}
        chat = {"template": self.chat.template_hash, "thinking": self.chat.thinking, "stop_ids": sorted(self.stop)}
        return {**made_with, **chat, **sampling}

    def answer(self, conversations: list[tuple[str, list[dict]]]) -> list[dict]:
        """(where, messages) -> a row for every assistant turn, conversation by conversation."""
        talks = [Conversation(where, questions_of(messages)) for where, messages in conversations]
        self.converse(talks)
        return [row for talk in talks for row in talk.rows]

    def converse(self, conversations: list[Conversation]) -> None:
        """Answers every turn; turn r of all of them is one generation batch. One that cannot go on ends, the others do not."""
        for turn in range(max((len(c.questions) for c in conversations), default=0)):
            asked = [(c, *prompt) for c in conversations if (prompt := self._prompt(c, turn))]
            if asked:
                answers = self.generate([prompt for _, _, prompt in asked])
                for (conversation, text, prompt), response in zip(asked, answers, strict=True):
                    self._keep(conversation, text, prompt, response)
        for conversation in conversations:
            if conversation.rows:
                conversation.rows[-1] |= {"last": True, "ended": conversation.ended}

    def _prompt(self, conversation: Conversation, turn: int) -> tuple[str, list[int]] | None:
        """Text and ids that the server would see at this turn; none where there is no such turn."""
        if conversation.ended or turn >= len(conversation.questions):
            return None
        messages = conversation.history + conversation.questions[turn]
        try:
            text = self.chat.render(messages, add_generation_prompt=True)
        except BadRow as bad:
            conversation.ended = str(bad)
            return None
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        needed = len(ids) + self.sampling.max_new_tokens
        if self.positions is not None and needed > self.positions:
            conversation.ended = f"{NO_ROOM}: {needed} of {self.positions} positions"
            return None
        conversation.history = messages
        return text, ids

    def _keep(self, conversation: Conversation, text: str, prompt: list[int], response: list[int]) -> None:
        parsed = parse_answer(self.chat, text, response)
        conversation.history = [*conversation.history, parsed.message]
        row = {
            "id": f"{conversation.where}#{len(conversation.rows) + 1}",
            "messages": conversation.history,
            "prompt_ids": prompt,
            "response_ids": response,
            "finish": "stop" if response[-1] in self.stop else "length",
            "last": False,  # of its conversation
            "ended": None,
        }
        conversation.rows.append(row)
        if len(conversation.rows) < len(conversation.questions):
            conversation.ended = parsed.ended

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """Left-padded batch generation; a response ends with its stop token, or at max_new_tokens without one."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        torch.manual_seed(int(contents.key([self.sampling.seed, prompts]), 16) % 2**63)  # two batches never draw the same numbers
        # In the place of the target's own: `generate` takes from there whatever is not set, and penalties cannot be set to nothing.
        self.model.generation_config = self._plainly()
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=self._plainly())
        return [self._until_stop(row) for row in out[:, width:].tolist()]

    def _plainly(self) -> GenerationConfig:
        """Greedy, or drawn at the temperature alone: what a server does when a request names its temperature and nothing else, and
        the server is told to take no defaults from generation_config.json (vLLM: --generation-config vllm; SGLang:
        --sampling-defaults openai)."""
        drawn = {"do_sample": True, "temperature": self.sampling.temperature, "top_k": 0, "top_p": 1.0}
        how = drawn if self.sampling.temperature > 0 else {"do_sample": False}
        stop = sorted(self.stop) or None
        return GenerationConfig(max_new_tokens=self.sampling.max_new_tokens, eos_token_id=stop, pad_token_id=self.pad, **how)

    def _until_stop(self, ids: list[int]) -> list[int]:
        end = next((i + 1 for i, token in enumerate(ids) if token in self.stop), len(ids))
        return ids[:end]


def questions_of(messages: list[dict]) -> list[list[dict]]:
    """Messages between assistant turns, in groups that each end where the assistant is to speak. A greeting before the first user turn
    is no answer and stays."""
    groups, current, asked = [], [], False
    for message in messages:
        if message["role"] == "assistant" and asked:
            groups.append(current)
            current, asked = [], False
        elif message["role"] != "assistant" or not groups:
            current.append(message)
            asked = asked or message["role"] == "user"
    return [*groups, current] if asked else groups
