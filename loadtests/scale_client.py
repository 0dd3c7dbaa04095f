"""One client of `scale.py`, in a process of its own: it keeps requests in flight and counts what is scored meanwhile.

    scale_client.py URL[,URL...] IN_FLIGHT SECONDS

Prints one JSON object.
"""

import asyncio
import json
import os
import sys
import time

from servers import machine_seconds

from plaudit_client import AsyncRewardClient

# Sequences of one request, and tokens of one sequence: BOS and words.
SEQUENCES, TOKENS = 16, 64

_WORDS = ("good", "fine", "bad", "awful")
# Words that differ from text to text; the others cost the client nothing to make.
_NUMBERED = 27


def text(number: int, num_words: int = TOKENS - 1) -> str:
    """A text of so many words, another one for each number below 2^54."""
    numbered = " ".join([_WORDS[number >> 2 * place & 3] for place in range(_NUMBERED)])
    return numbered + " good" * (num_words - _NUMBERED)


def share_within(began: float, ended: float, begin: float, end: float) -> float:
    """Which share of the time from `began` to `ended` lies between `begin` and `end`."""
    return max(0.0, min(ended, end) - max(began, begin)) / (ended - began)


async def ask(urls: str, in_flight: int, seconds: float) -> dict[str, float]:
    """Keep so many requests in flight, and measure for `seconds` after a warm-up of a quarter of that.

    A request that is in flight as the time begins or ends counts by the share of its time that lies within.
    """
    clock = asyncio.get_running_loop().time
    number, scored, everything = os.getpid() << 32, 0.0, 0
    async with AsyncRewardClient(
        urls, max_concurrency=in_flight, max_items_per_request=SEQUENCES, timeout_s=600
    ) as client:
        await client.score([text(number)])
        begin = clock() + seconds / 4
        end = begin + seconds

        async def work() -> None:
            nonlocal number, scored, everything
            while (began := clock()) < end:
                items = [text(number + place) for place in range(1, SEQUENCES + 1)]
                number += SEQUENCES
                await client.score(items)
                everything += SEQUENCES
                scored += SEQUENCES * share_within(began, clock(), begin, end)

        async def watch() -> tuple[float, float]:
            await asyncio.sleep(begin - clock())
            cpu_s, machine_s = time.process_time(), machine_seconds()
            await asyncio.sleep(end - clock())
            return time.process_time() - cpu_s, machine_seconds() - machine_s

        (cpu_s, machine_s), *_ = await asyncio.gather(watch(), *(work() for _ in range(in_flight)))
    return {"sequences": scored, "all": everything, "seconds": seconds, "cpu_s": cpu_s, "machine_s": machine_s}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
