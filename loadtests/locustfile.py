"""locust scenario: users that send one completion, or a group of eight for one prompt, and wait for the scores.

Against a running service: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`. An answer counts as a
failure unless every item in it has a score.
"""

import random

from locust import FastHttpUser, constant, task

WORDS = ["the", "answer", "is", "not", "what", "you", "asked", "for", "but", "here", "it", "comes"]


def words(low: int, high: int) -> str:
    """Between `low` and `high` random words."""
    return " ".join(random.choices(WORDS, k=random.randint(low, high)))


class Trainer(FastHttpUser):
    """One rollout worker."""

    wait_time = constant(0)

    @task(4)
    def single(self) -> None:
        """One prompt with one completion."""
        self._score("single", {"prompt": words(10, 60), "completion": " " + words(5, 80)})

    @task(1)
    def group(self) -> None:
        """One prompt with eight completions."""
        self._score("group of 8", {"prompt": words(40, 120), "completions": [" " + words(5, 60) for _ in range(8)]})

    def _score(self, name: str, item: dict[str, object]) -> None:
        with self.client.post("/score", json={"items": [item]}, name=name, catch_response=True) as response:
            if response.status_code == 200 and any(result["status"] != "ok" for result in response.json()["results"]):
                response.failure("an item has no score")
