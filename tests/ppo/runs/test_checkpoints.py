import json

import pytest
import torch
from accelerate import Accelerator

from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.runs.checkpoints import (
    RunState,
    load_optimizer,
    load_state,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)

STATE = RunState(iteration=7, kl_coef=0.07, constant_iterations=2, prompts_hash="ab", fingerprint="sha256:1")


@pytest.fixture
def make_learner():
    def make(seed=0, size=3):
        torch.manual_seed(seed)
        networks = torch.nn.Linear(size, 1), torch.nn.Linear(size, 1, bias=False)
        optimizers = [torch.optim.AdamW(network.parameters(), lr=0.1, eps=1e-5) for network in networks]
        return Learner(*networks, optimizers, Accelerator(), max_grad_norm=0.0)

    with torch.random.fork_rng():
        yield make


def step(learner):
    policy_loss, value_loss = (network(torch.ones(1, 3)).sum() for network in (learner.policy, learner.critic))
    learner.backward(policy_loss, 2 * value_loss)
    assert learner.step() is None


def save(folder, state=STATE, learner=None, keep=2):
    def write_models(directory):
        (directory / "policy").mkdir()

    tensors = optimizer_tensors(learner.optimizer_state() if learner else (), keep=True)
    return save_checkpoint(folder, state, tensors, write_models=write_models, keep=keep)


def test_the_state_comes_back_as_it_was(tmp_path):
    path = save(tmp_path)
    assert path.name == "iteration-000007"
    assert load_state(path) == STATE


def test_optimizers_go_on_in_the_same_bits(tmp_path, make_learner):
    learner, other = make_learner(), make_learner(seed=1)
    step(learner)
    path = save(tmp_path, learner=learner)
    other.policy.load_state_dict(learner.policy.state_dict())
    other.critic.load_state_dict(learner.critic.state_dict())
    other.restore_optimizer(load_optimizer(path, other.shapes))
    for each in (learner, other):
        step(each)
    for one, two in ((learner.policy, other.policy), (learner.critic, other.critic)):
        assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_nothing_is_pickled(tmp_path, make_learner):
    learner = make_learner()
    step(learner)
    path = save(tmp_path, learner=learner)
    files = {file.name for file in path.rglob("*") if file.is_file()}
    assert files == {"optimizer.safetensors", "state.json"}
    json.loads((path / "state.json").read_text())


def test_the_oldest_are_removed_and_the_newest_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for iteration in (9, 10, 999_999, 1_000_000):
        save(tmp_path, RunState(iteration=iteration, kl_coef=0.1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration-1000000", "iteration-999999"]
    assert newest_checkpoint(tmp_path).name == "iteration-1000000"


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path):
    save(tmp_path)
    (tmp_path / ".unfinished-iteration-000008").mkdir()
    assert newest_checkpoint(tmp_path).name == "iteration-000007"


def test_a_checkpoint_of_an_iterations_start_is_not_replaced_by_one_of_its_middle(tmp_path):
    save(tmp_path)
    save(tmp_path, RunState(iteration=7, kl_coef=99.0))
    assert load_state(tmp_path / "iteration-000007") == STATE


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"iteration": 1, "kl_coef": 1, "more": 2}'])
def test_a_state_that_is_none_is_refused(tmp_path, text):
    path = save(tmp_path)
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json: not the state of a run"):
        load_state(path)


def test_an_optimizer_of_other_models_and_a_broken_file_are_refused(tmp_path, make_learner):
    learner = make_learner()
    step(learner)
    path = save(tmp_path, learner=learner)
    with pytest.raises(CheckpointError, match="it belongs to other models than the given ones"):
        load_optimizer(path, make_learner(size=4).shapes)
    (path / "optimizer.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_optimizer(path, learner.shapes)
