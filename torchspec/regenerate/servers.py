"""Servers as the target at work: each conversation goes on at its own pace, as many requests in flight as the servers take."""

from collections.abc import Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from threading import Lock, Thread

from torchspec.capture.http import Refused
from torchspec.capture.pool import Pool
from torchspec.errors import UserError
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.protocol import Request, Written
from torchspec.regenerate.server import Server
from torchspec.regenerate.turns import Answer, Question, Turns

EMPTY = "the server gave an empty answer"


class Servers:
    def __init__(self, turns: Turns, servers: list[Server], in_flight: int):
        """in_flight: requests at a time, of each server. All run one version of one engine, as the answers of a file do."""
        kinds = {f"{server.engine} {server.version}" for server in servers}
        if len(kinds) > 1:
            raise UserError(f"the servers run {' and '.join(sorted(kinds))}; answers of one file come from one engine, so leave some out")
        self.turns, self.servers, self.in_flight = turns, servers, in_flight
        self.made_with = {"engine": kinds.pop()}
        self.tokenizing = Lock()  # a fast tokenizer is not for several threads at once

    def converse(self, conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
        """Yields what is finished by now. What is in flight when it is left is lost."""
        pool, source, most = Pool(self.servers, self.in_flight), iter(conversations), self.in_flight * len(self.servers)
        todo, done, open_ones = SimpleQueue(), SimpleQueue(), 0
        for _ in range(most):
            Thread(target=self._work, args=(pool, todo, done), daemon=True).start()
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
            pool.close()
            for _ in range(most):
                todo.put(None)

    def _work(self, pool: Pool, todo: SimpleQueue, done: SimpleQueue) -> None:
        while conversation := todo.get():
            try:
                done.put(self._answer(pool, conversation))
            except BaseException as error:  # raised again in the thread that waits for answers
                done.put(error)

    def _answer(self, pool: Pool, conversation: Conversation) -> Conversation:
        while question := self._question(conversation):
            request = self._request(conversation, question)
            try:
                written = pool.ask(lambda server, request=request: server.answer(request))
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

    def read(self, written: Written) -> Answer:
        """The engine's own ids up to the stop token, or its text tokenized again."""
        stop, tokenizer = self.turns.stop, self.turns.tokenizer
        if written.ids is not None:
            ids = written.ids[: next((n for n, token in enumerate(written.ids, start=1) if token in stop), None)]
            return Answer(ids, "stop" if ids and ids[-1] in stop else written.finish)
        ids = tokenizer(written.text, add_special_tokens=False).input_ids
        # which of the stop tokens it was, a text does not say
        end = [tokenizer.eos_token_id] if written.finish == "stop" and tokenizer.eos_token_id in stop else []
        same = tokenizer.decode(ids) == written.text and written.count in (None, len(ids), len(ids + end))
        return Answer(ids + end, written.finish, "same" if same else "changed")
