"""Servers of the target side by side. Each conversation goes on at its own pace; what a server drops is asked of another one.

A server that failed gets one request at a time, after a pause that doubles, until one is answered; after TRIES of them it is dead.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from threading import Condition, Lock, Thread

from torchspec.console import console
from torchspec.errors import UserError
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.protocol import Request, Written
from torchspec.regenerate.server import Refused, Server, ServerFailed
from torchspec.regenerate.turns import Answer, Question, Turns

TRIES = 6  # one after another until a server is dead: half a minute with the pauses between them
REPLIES = 3  # failures of one request, each a reply, until it is the request that is at fault
PAUSE = 0.5  # seconds after the first failure
EMPTY = "the server gave an empty answer"


class Load:
    """How busy a server is, and since when it fails."""

    def __init__(self, server: Server):
        self.server, self.busy, self.failures, self.failed_at, self.rests_until = server, 0, 0, 0.0, 0.0
        self.death: str | None = None

    def is_free(self, in_flight: int) -> bool:
        most = 1 if self.failures else in_flight
        return self.death is None and self.busy < most and self.rests_until <= time.monotonic()

    def fail(self, reason: str, asked_at: float) -> None:
        if asked_at < self.failed_at:  # all that was in flight when a server falls is one failure
            return
        self.failures, self.failed_at = self.failures + 1, time.monotonic()
        self.rests_until = self.failed_at + PAUSE * 2 ** (self.failures - 1)
        if self.failures == TRIES and self.death is None:
            self.death = reason
            console.print(f"{self.server.url} is given up: {reason}; its rows go to the others", markup=False)


class Servers:
    def __init__(self, turns: Turns, servers: list[Server], in_flight: int):
        """in_flight: requests at a time, of each server. All run one version of one engine, as the answers of a file do."""
        kinds = {f"{server.engine} {server.version}" for server in servers}
        if len(kinds) > 1:
            raise UserError(f"the servers run {' and '.join(sorted(kinds))}; answers of one file come from one engine, so leave some out")
        self.turns, self.loads, self.in_flight = turns, [Load(server) for server in servers], in_flight
        self.made_with = {"engine": kinds.pop()}
        self.changed = Condition()
        self.tokenizing = Lock()  # a fast tokenizer is not for several threads at once
        self.closed = False

    def converse(self, conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
        """Yields what is finished by now. What is in flight when it is left is lost."""
        todo, done, source, most = SimpleQueue(), SimpleQueue(), iter(conversations), self.in_flight * len(self.loads)
        self.closed = False
        for _ in range(most):
            Thread(target=self._work, args=(todo, done), daemon=True).start()
        open_ones = 0
        try:
            while True:
                for conversation in islice(source, 2 * most - open_ones):  # as many wait as are asked: no worker waits for our reading
                    todo.put(conversation)
                    open_ones += 1
                if not open_ones:
                    return
                finished = [done.get()]
                while not done.empty():
                    finished.append(done.get())
                open_ones -= len(finished)
                answered = [one for one in finished if isinstance(one, Conversation)]
                if answered:
                    yield answered
                for failure in finished:
                    if isinstance(failure, BaseException):
                        raise failure
        finally:
            with self.changed:
                self.closed = True
                self.changed.notify_all()
            for _ in range(most):
                todo.put(None)

    def _work(self, todo: SimpleQueue, done: SimpleQueue) -> None:
        while conversation := todo.get():
            try:
                done.put(self._answer(conversation))
            except BaseException as error:  # raised again in the thread that waits for answers
                done.put(error)

    def _answer(self, conversation: Conversation) -> Conversation:
        while question := self._question(conversation):
            try:
                written = self.ask(self._request(conversation, question))
            except Refused as refused:
                conversation.ended = f"no server takes the prompt: {refused}"
                break
            with self.tokenizing:
                answer = self.read(written)
                if answer.ids:
                    self.turns.keep(conversation, question, answer)
                else:
                    conversation.ended = EMPTY
        return self.turns.close(conversation)

    def _question(self, conversation: Conversation) -> Question | None:
        with self.tokenizing:
            return self.turns.ask(conversation)

    def _request(self, conversation: Conversation, question: Question) -> Request:
        sampling, stop = self.turns.sampling, sorted(self.turns.stop)
        seed = sampling.seed_of([(conversation.key, len(conversation.rows))])
        return Request(question.ids, sampling.max_new_tokens, sampling.temperature(conversation), seed, stop)

    def ask(self, request: Request) -> Written:
        """Of whichever server is free, until one has answered."""
        replies = 0
        while True:
            load, asked_at, failure = self._take(), time.monotonic(), None
            try:
                return load.server.answer(request)
            except ServerFailed as failed:
                failure = str(failed)
                replies += failed.by_request
                if replies == REPLIES:
                    raise Refused(failure) from failed
            finally:
                self._give_back(load, asked_at, failure)

    def _take(self) -> Load:
        with self.changed:
            while True:
                if self.closed:
                    raise SystemExit  # of this thread alone
                if all(load.death for load in self.loads):
                    deaths = "; ".join(f"{load.server.url}: {load.death}" for load in self.loads)
                    raise UserError(
                        f"no server is left ({deaths}); every conversation that was answered whole is kept, and the same command goes "
                        "on there once a server runs"
                    )
                free = [load for load in self.loads if load.is_free(self.in_flight)]
                if free:
                    load = min(free, key=lambda load: (load.failures > 0, load.busy))
                    load.busy += 1
                    return load
                pauses = [load.rests_until - time.monotonic() for load in self.loads]
                self.changed.wait(min((pause for pause in pauses if pause > 0), default=None))

    def _give_back(self, load: Load, asked_at: float, failure: str | None) -> None:
        with self.changed:
            load.busy -= 1
            if failure is None:
                load.failures = 0
            else:
                load.fail(failure, asked_at)
            self.changed.notify_all()

    def read(self, written: Written) -> Answer:
        """The engine's own ids up to the stop token, or its text tokenized again."""
        stop = self.turns.stop
        if written.ids is not None:
            ids = written.ids[: next((n for n, token in enumerate(written.ids, start=1) if token in stop), None)]
            return Answer(ids, "stop" if ids and ids[-1] in stop else written.finish)
        ids = self.turns.tokenizer(written.text, add_special_tokens=False).input_ids
        ends = written.finish == "stop"
        same = self.turns.tokenizer.decode(ids) == written.text and written.count in (None, len(ids), len(ids) + ends)
        if ends:  # which of the stop tokens it was, a text does not say
            ids.append(self.turns.tokenizer.eos_token_id)
        return Answer(ids, written.finish, "same" if same else "changed")
