"""A server runs the target and no other model: its tokenizer gives the target's ids, and its next tokens are the target's own choice."""

import torch
from transformers import PreTrainedModel

from torchspec.capture.http import Refused, ServerDown
from torchspec.errors import UserError
from torchspec.regenerate.protocol import Request
from torchspec.regenerate.server import Server
from torchspec.regenerate.servers import Servers
from torchspec.regenerate.turns import Turns

PROBES = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain step by step how to solve 3x + 7 = 25.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "¿Por qué el cielo es azul? 天空为什么是蓝色的？",
)
TOKENS = 24  # of each probe
# Of its greedy tokens, how many must be the target's own choice, or as likely up to rounding. Of SmolLM2, ties left out, 98.9% of its own
# greedy answers are, and 68% of what people wrote.
LEAST_SHARE = 0.9
TIE = 0.1  # nats below the most likely token that bfloat16 explains


def check_vocabulary(server: Server, turns: Turns) -> None:
    """The probes as its own tokenizer reads them; where it shows none, the next tokens tell."""
    for text in rendered(turns):
        theirs = _asked(server, lambda text=text: server.token_ids(text))
        if theirs is None:
            return
        if theirs != turns.tokenizer(text, add_special_tokens=False).input_ids:
            raise UserError(
                f"{server.url} serves {server.model}, whose tokenizer reads {text[:60]!r}... as other ids than {turns.target.name}'s; give "
                "a server of the target"
            )


@torch.inference_mode()
def check_same_target(server: Server, servers: Servers, model: PreTrainedModel) -> None:
    same = total = 0
    for text in rendered(servers.turns):
        prompt = servers.turns.tokenizer(text, add_special_tokens=False).input_ids
        request = Request(prompt, TOKENS, 0.0, 0, sorted(servers.turns.stop))
        answer = servers.read(_asked(server, lambda request=request: server.answer(request)))
        ids = torch.tensor([prompt + answer.ids], device=model.device)  # [1, L]
        law = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)  # [answer, V]
        below = law.max(-1).values - law.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        same, total = same + int((below <= TIE).sum()), total + len(answer.ids)
    if same < LEAST_SHARE * total:
        raise UserError(
            f"{server.url} serves {server.model}, of whose greedy tokens {same} of {total} are {servers.turns.target.name}'s own choice; "
            "give a server of the target, with its weights as they are"
        )


def rendered(turns: Turns) -> list[str]:
    return [turns.chat.render([{"role": "user", "content": probe}], add_generation_prompt=True) for probe in PROBES]


def _asked(server: Server, ask):
    try:
        return ask()
    except (ServerDown, Refused) as failed:
        raise UserError(f"{server.url} does not answer ({failed}); look at its log") from failed
