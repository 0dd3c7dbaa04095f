"""The load: threads that ask one client for scores in all its ways, and write down what became of each call."""

import concurrent.futures
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from nemesis.history import CANCELLED, SCORES, Call, Got, History, Question, Truth
from nemesis.models import HELPFUL, QUESTIONS, SAFE, Item, askable
from nemesis.schedule import COMBINED
from plaudit_client import RewardClient
from plaudit_client.errors import PlauditError
from plaudit_client.retry import Timing
from plaudit_client.scores import Score, Scores
from plaudit_client.transport import HttpRequest, HttpResponse, Network

NUM_THREADS = 4
_LONGEST_CALL = 24
_TIMEOUT_S = 60.0
_CANCELLED_SHARE = 0.05
_SHORT_SHARE = 0.1


class CountedNetwork(Network):
    """The real network, which counts the score requests that it sends and what the answers hold.

    Attributes:
        num_sent: Score requests.
        answers: With scores, by URL and whole second of the monotonic clock.
        results: In these answers, by URL, second and status.
    """

    def __init__(self) -> None:
        super().__init__(max_age_s=Timing().max_connection_age_s)
        self.num_sent = 0
        self.answers: Counter[tuple[str, int]] = Counter()
        self.results: Counter[tuple[str, int, str]] = Counter()

    async def send(self, request: HttpRequest, address: str) -> HttpResponse:
        """Send a request, once."""
        if request.method != "POST":
            return await super().send(request, address)
        self.num_sent += 1
        answer = await super().send(request, address)
        if answer.status == 200:
            url, second = request.url.rpartition("/")[0], int(time.monotonic())
            self.answers[url, second] += 1
            for result in json.loads(answer.body)["results"]:
                self.results[url, second, result["status"]] += 1
        return answer


class Load:
    """Threads that ask until the block ends.

    Args:
        urls: Of the replicas.
        items: The pool.
        seed: Of what is asked; who asks when is up to the machine.
        history: Where calls are written down.
        clock: Seconds since the start.
        on_call: Called with each call once it has ended.
    """

    def __init__(
        self,
        urls: Sequence[str],
        items: Sequence[Item],
        seed: int,
        history: History,
        clock: Callable[[], float],
        on_call: Callable[[Call], None],
    ) -> None:
        self._items = items
        self._seed = seed
        self._history = history
        self._clock = clock
        self._on_call = on_call
        self._networks = {HELPFUL: CountedNetwork(), SAFE: CountedNetwork()}
        self._clients = {
            model: RewardClient(where, timeout_s=_TIMEOUT_S, max_items_per_request=12, transport=self._networks[model])
            for model, where in ((HELPFUL, list(urls)), (SAFE, [urls[COMBINED]]))
        }
        self._places = {question: askable(question, items) for question in QUESTIONS}
        self._known: dict[Got, Got] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(NUM_THREADS)]

    def __enter__(self) -> Self:
        """Pin the reward models while nothing is wrong yet, and begin."""
        for question in QUESTIONS:
            self._call(question, self._places[question][:2], random.Random(0), is_plain=True)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with ExitStack() as stack:
            for client in self._clients.values():
                stack.callback(client.close)
            for thread in self._threads:
                thread.join()
        self._history.num_sent = sum(network.num_sent for network in self._networks.values())

    def received(self, url: str, *, since: float) -> tuple[int, Counter[str]]:
        """Answers of one replica after a moment of the monotonic clock, and their results by status."""
        answers, results = 0, Counter[str]()
        for network in self._networks.values():
            answers += sum(n for (where, second), n in network.answers.items() if where == url and second > since)
            for (where, second, status), n in network.results.items():
                if where == url and second > since:
                    results[status] += n
        return answers, results

    def _ask(self, thread: int) -> None:
        chance = random.Random(f"{self._seed}/load/{thread}")
        while not self._stopping.is_set():
            (question,) = chance.choices(QUESTIONS, weights=[6, 2, 2])
            places = chance.choices(self._places[question], k=chance.randint(1, _LONGEST_CALL))
            self._call(question, places, chance)

    def _call(
        self, question: Question, places: Sequence[int], chance: random.Random, *, is_plain: bool = False
    ) -> None:
        fate = 1.0 if is_plain else chance.random()
        leaves_after_s = chance.uniform(0.0, 0.1) if fate < _CANCELLED_SHARE else None
        is_short = not is_plain and _CANCELLED_SHARE <= fate < _CANCELLED_SHARE + _SHORT_SHARE
        timeout_s = chance.uniform(0.02, 3.0) if is_short else None
        with self._lock:
            number = self._history.begun
            self._history.begun += 1
        began_s = self._clock()
        outcome, scores, detail = self._outcome(
            question, [self._items[place] for place in places], timeout_s, leaves_after_s
        )
        results = None if scores is None else tuple(map(self._got, scores))
        call = Call(number, question, tuple(places), began_s, self._clock(), outcome, results, is_short, detail)
        with self._lock:
            self._history.calls.append(call)
        self._on_call(call)

    def _got(self, score: Score) -> Got:
        """One value for equal results: a night has millions of them."""
        got = Got.of(score.status, score.score, score.heads)
        return self._known.setdefault(got, got)

    def _outcome(
        self, question: Question, items: list[Any], timeout_s: float | None, leaves_after_s: float | None
    ) -> tuple[str, Scores | None, str]:
        client = self._clients[question.model]
        future = client.submit(items, model=question.model, truncation=question.truncation, timeout_s=timeout_s)  # type: ignore[arg-type]  # one of its words
        try:
            if leaves_after_s is not None:
                time.sleep(leaves_after_s)
                if future.cancel():
                    return CANCELLED, None if future.cancelled() else future.result(), ""
            return SCORES, future.result(), ""
        except concurrent.futures.CancelledError:
            return CANCELLED, None, ""
        except Exception as error:  # noqa: BLE001  the checker says which may be
            return type(error).__name__, None, str(error)


def ask_quietly(url: str, items: Sequence[Item], truth: Truth) -> tuple[int, Counter[str], list[str]]:
    """Ask one replica for all items: how many requests that took, the statuses that came, and what was wrong."""
    network, question = CountedNetwork(), Question(HELPFUL, "error")
    with RewardClient(url, transport=network, timeout_s=_TIMEOUT_S) as client:
        try:
            scores = client.score(list(items), model=question.model)
        except PlauditError as error:
            return network.num_sent, Counter(), [f"{url}: asked in the end: {type(error).__name__}: {error}"]
    got = [Got.of(one.status, one.score, one.heads) for one in scores]
    right = got == [one for results in truth[question] for one in results]
    return network.num_sent, Counter(one.status for one in got), [] if right else [f"{url}: other scores in the end"]
