"""What is refused before processes are joined. What they do together: tests/e2e/test_ppo_processes.py."""

import pytest
import torch

from plaudit_ppo.distributed.processes import check_processes, end_processes
from plaudit_ppo.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        ("ACCELERATE_USE_FSDP", 'set sharding = "fsdp" in the configuration'),
        ("ACCELERATE_USE_DEEPSPEED", 'set sharding = "deepspeed" in the configuration'),
        ("ACCELERATE_USE_MEGATRON_LM", "not supported"),
    ],
)
def test_what_accelerate_is_told_to_shard_by_is_refused_with_the_setting_to_use(
    make_trainer, monkeypatch, flag, remedy
):
    monkeypatch.setenv(flag, "true")
    with pytest.raises(ConfigError, match=f"{flag} is set: start the processes with --multi_gpu alone, and .*{remedy}"):
        make_trainer()


class Accelerator:
    num_processes = 2
    mixed_precision = "no"

    class distributed_type:  # noqa: N801  # as accelerate has it
        name = "MULTI_GPU"


@pytest.mark.parametrize(
    ("changes", "rollouts", "says"),
    [
        ({"mixed_precision": "bf16"}, 8, r'mixed precision bf16 of accelerate; .* set precision = "bfloat16"'),
        ({"distributed_type": type("kind", (), {"name": "XLA"})}, 8, "distributed type XLA; has to be one of NO, "),
        ({}, 7, "rollout_batch_size = 7 cannot be shared by 2 processes with at least 3 rollouts each"),
        ({}, 4, "rollout_batch_size = 4 cannot be shared by 2 processes with at least 3 rollouts each"),
    ],
)
def test_processes_that_cannot_work_together_are_refused(changes, rollouts, says):
    accelerator = Accelerator()
    check_processes(accelerator, rollouts=8, minibatches=3)
    check_processes(accelerator, rollouts=8, minibatches=3, group=4)
    with pytest.raises(ConfigError, match=r"in groups of 4 \(samples_per_prompt\); give a multiple of 8"):
        check_processes(accelerator, rollouts=12, minibatches=3, group=4)
    for name, value in changes.items():
        setattr(accelerator, name, value)
    with pytest.raises(ConfigError, match=says):
        check_processes(accelerator, rollouts=rollouts, minibatches=3)


def test_one_process_has_nothing_to_end(make_trainer):
    make_trainer(iterations=1).train()
    end_processes()
    assert not torch.distributed.is_initialized()
