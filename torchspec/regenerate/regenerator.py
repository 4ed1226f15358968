"""The target at work in this process: Transformers answers a batch of conversations at a time, as a server would."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from transformers import GenerationConfig, PreTrainedModel

from torchspec.errors import UserError
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.turns import Answer, Question, Turns

WINDOW = 32  # batches whose conversations are sorted by length together: little padding, bounded memory


class Regenerator:
    def __init__(self, turns: Turns, model: PreTrainedModel, batch_size: int):
        """batch_size: conversations answered at a time, and lost at most when the run is killed."""
        self.turns, self.model, self.batch_size = turns, model, batch_size
        self.pad = next((i for i in (turns.tokenizer.pad_token_id, *sorted(turns.stop)) if i is not None), 0)
        self.made_with = {"dtype": str(model.dtype).removeprefix("torch.")}

    def converse(self, conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
        for batch in self._batches(iter(conversations)):
            try:
                self._answer(batch)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the device has no memory for {len(batch)} conversations at a time; go on with a smaller --batch-size or "
                    "--max-new-tokens"
                ) from error
            yield [self.turns.close(conversation) for conversation in batch]

    def _batches(self, conversations: Iterator[Conversation]) -> Iterator[list[Conversation]]:
        while window := list(islice(conversations, WINDOW * self.batch_size)):
            window.sort(key=lambda conversation: len(str(conversation.questions)))
            for start in range(0, len(window), self.batch_size):
                yield window[start : start + self.batch_size]

    def _answer(self, batch: list[Conversation]) -> None:
        """Turn r of all of them is one generation batch for each temperature. One that cannot go on ends, the others do not."""
        while asked := [(conversation, question) for conversation in batch if (question := self.turns.ask(conversation))]:
            for temperature in sorted(set(self.turns.sampling.temperatures)):
                alike = [pair for pair in asked if self.turns.sampling.temperature(pair[0]) == temperature]
                if alike:
                    self._generate_and_keep(alike, temperature)

    def _generate_and_keep(self, asked: list[tuple[Conversation, Question]], temperature: float) -> None:
        seed = self.turns.sampling.seed_of([(conversation.key, len(conversation.rows)) for conversation, _ in asked])
        answers = self.generate([question.ids for _, question in asked], temperature, seed)
        for (conversation, question), ids in zip(asked, answers, strict=True):
            self.turns.keep(conversation, question, Answer(ids, "stop" if ids[-1] in self.turns.stop else "length"))

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """Left-padded batch generation; a response ends with its stop token, or at max_new_tokens without one."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        torch.manual_seed(seed)
        # In the place of the target's own: `generate` takes from there whatever is not set, and penalties cannot be set to nothing.
        self.model.generation_config = self._plainly(temperature)
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=self._plainly(temperature))
        return [self._until_stop(row) for row in out[:, width:].tolist()]

    def _plainly(self, temperature: float) -> GenerationConfig:
        """Greedy, or drawn at the temperature alone: what a server does when a request names its temperature and nothing else, and
        the server is told to take no defaults from generation_config.json (vLLM: --generation-config vllm; SGLang:
        --sampling-defaults openai)."""
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        how = drawn if temperature > 0 else {"do_sample": False}
        stop, most = sorted(self.turns.stop) or None, self.turns.sampling.max_new_tokens
        return GenerationConfig(max_new_tokens=most, eos_token_id=stop, pad_token_id=self.pad, **how)

    def _until_stop(self, ids: list[int]) -> list[int]:
        end = next((i + 1 for i, token in enumerate(ids) if token in self.turns.stop), len(ids))
        return ids[:end]
