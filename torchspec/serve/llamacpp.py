"""llama.cpp as an engine: the files it loads, what its server is asked, and how it tells what it accepted."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import requests

from torchspec.errors import UserError
from torchspec.export.gguf import convert_draft, convert_target
from torchspec.export.llamacpp import LlamaCpp
from torchspec.files.contents import folder_key, key
from torchspec.files.whole import whole
from torchspec.serve.client import PATIENCE, Client, Reply, Request
from torchspec.serve.options import Serving
from torchspec.serve.prometheus import by_position
from torchspec.serve.records import Load, Served, Steps

ACCEPTED = "llamacpp:spec_decode_num_accepted_tokens_per_pos_total"


class LlamaCppClient(Client):
    """Its own protocol: OpenAI's, there, has no token ids. Answers come whole, since a stream leaves out the ids of half characters."""

    def ask(self, prompt: list[int], request: Request) -> Reply:
        """It ends at the end tokens that its file names; of what is sampled nothing is cut off, as its defaults would."""
        body = {"prompt": prompt, "n_predict": request.max_new_tokens, "temperature": request.temperature, "seed": request.seed}
        body |= {"samplers": ["temperature"], "cache_prompt": False, "return_tokens": True, **request.extra}
        started = time.perf_counter()
        try:
            answer = requests.post(f"{self.url}/completion", json=body, timeout=PATIENCE)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise self.failed(error) from error
        seconds, said = time.perf_counter() - started, answer.json()
        if not said.get("tokens"):
            raise UserError(f"the server at {self.url} sent no token ids; it must be llama.cpp's, of October 2026 or newer")
        timings = said["timings"]
        details = {"drafted": timings.get("draft_n", 0), "accepted": timings.get("draft_n_accepted", 0), "most": request.max_new_tokens}
        return Reply(said["tokens"], max(seconds - timings["predicted_ms"] / 1000, 0.0), seconds, details)


def command(serving: Serving) -> list[str]:
    return [str(LlamaCpp.at(serving.llamacpp).server)]


def files(served: Served, serving: Serving, folder: Path) -> Served:
    """Target and draft as files in `folder`, each under the contents of what it was made from."""
    llamacpp, python = LlamaCpp.at(serving.llamacpp), serving.python or sys.executable
    converter, target = folder_key(llamacpp.folder / "conversion"), folder_key(served.target)
    parts = {"target": [converter, served.dtype, target]}
    if served.draft is not None:
        parts["draft"] = [converter, served.dtype, target, folder_key(served.draft)]
    made = {name: folder / f"{name}-{key(of)}.gguf" for name, of in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in made.items():
        if file.is_file():
            continue
        with whole(file) as partial:
            if name == "target":
                convert_target(llamacpp, served.target, partial, served.dtype, python)
            else:
                convert_draft(llamacpp, served.draft, served.target, partial, served.dtype, python, served.gguf_facts)
    return replace(served, **made)


def arguments(served: Served, load: Load) -> list[str]:
    """A slot for each prompt that is asked at a time, with room for the longest; a context is shared out evenly."""
    slots = ["--parallel", str(load.prompts), "--ctx-size", str(load.prompts * (load.tokens + served.draft_tokens + 2))]
    return ["--model", str(served.target), *slots, "--metrics"]


def count(url: str, replies: list[Reply], tokens: int) -> Steps:
    """Steps from what comes with each answer, accepted drafts by slot from the server's counters.

    A step drafts K tokens, or as many as may still come less one; with one to come there is a step without a draft, which no counter
    of the server holds. An answer that fills its length therefore took a step for each token that was not an accepted draft. A
    shorter one took drafted / K steps, since no step ended beyond its last K tokens; where it nearly fills its length, that is one
    too few at times.
    """
    steps = 0
    for reply in replies:
        full = len(reply.ids) == reply.details["most"]
        steps += len(reply.ids) - 1 - reply.details["accepted"] if full else -(-reply.details["drafted"] // tokens)
    answer = requests.get(f"{url}/metrics", timeout=60)
    if answer.status_code != 200:
        raise UserError(f"the server at {url} shows no /metrics; start it with --metrics")
    return Steps(steps, by_position(answer.text, ACCEPTED, tokens))
