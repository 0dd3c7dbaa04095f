"""`plaudit-serve` and `plaudit-ppo` with one mistake each, for the tests of `make chaos`: `broken_builds.py MISTAKE`.

Those of the service begin after its start, which would find them.
"""

import contextlib
import itertools
import os
import shutil
import sys

MISTAKES = {}
_LATER = 400


def mistake(function):
    """By its name on the command line."""
    MISTAKES[function.__name__.replace("_", "-")] = function
    return function


@mistake
def results_one_off():
    """A batch of eight and more gives each sequence the outcome of the one before it."""
    from plaudit_service import cli
    from plaudit_service.engine.model import Model

    compute, calls = Model.compute, itertools.count()

    def one_off(self, batch, *arguments, **options):
        outcomes = compute(self, batch, *arguments, **options)
        return outcomes[-1:] + outcomes[:-1] if next(calls) > _LATER and len(batch) >= 8 else outcomes

    Model.compute = one_off
    return cli.main


@mistake
def answers_one_off():
    """A request of more than four sequences is answered in another order than it was asked."""
    from plaudit_service import cli
    from plaudit_service.engine.model import Model

    results, calls = Model.results, itertools.count()

    def one_off(self, *arguments, **options):
        right = results(self, *arguments, **options)
        return right[-1:] + right[:-1] if next(calls) > _LATER and len(right) > 4 else right

    Model.results = one_off
    return cli.main


@mistake
def cache_without_type_ids():
    """The cache of exact scores goes by token ids alone."""
    from plaudit_service import cli
    from plaudit_service.queueing.score_cache import ScoreCache

    get, put = ScoreCache.get, ScoreCache.put
    ScoreCache.get = lambda self, key: get(self, (key[0], b""))
    ScoreCache.put = lambda self, key, outcome: put(self, (key[0], b""), outcome)
    return cli.main


@mistake
def checkpoint_in_place():
    """A checkpoint is written under its own name from the start."""
    from plaudit_ppo.runs import directories

    @contextlib.contextmanager
    def directory(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        yield path

    directories.whole_directory = directory
    from plaudit_ppo.cli import command

    return command


@mistake
def engine_seeds_of_the_process():
    """What an engine samples is seeded by the process that asks, which is another one after a resume."""
    from plaudit_ppo.cli import command
    from plaudit_ppo.engine import sampler

    seed_of = sampler.rollout_seed
    sampler.rollout_seed = lambda seed, *place: seed_of(seed + os.getpid(), *place)
    return command


if __name__ == "__main__":
    main = MISTAKES[sys.argv.pop(1)]()
    sys.exit(main())
