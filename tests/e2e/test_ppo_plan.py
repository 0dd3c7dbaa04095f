"""What `plaudit-ppo plan` says against the memory that runs take; the whole table: python loadtests/ppo_plan.py."""

import pytest
from ppo_plan import CASES, measured, planned

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["58M", "58M checkpointed", "134M LoRA"])
def test_a_plan_is_within_15_percent_of_what_a_run_takes(name):
    plan, _ = planned(CASES[name])
    assert plan == pytest.approx(measured(name), rel=0.15)
