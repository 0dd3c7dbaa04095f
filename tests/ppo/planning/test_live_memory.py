import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from plaudit_ppo.planning.live_memory import LiveMemory

MB = 2**20


def test_the_peak_is_what_is_there_at_once_by_kind_and_no_view_or_weight_counts():
    weight = torch.ones(256, 1024)  # 1 MB
    with LiveMemory([weight], vocabulary=512) as memory:
        first = weight * 2  # 1 MB
        del first
        second, logits = weight + 1, torch.zeros(2048, 512)  # 1 MB and 4 MB
        view = second.t()
        del second, logits
        memory.move([view], "kept")
        third = view + 1  # 1 MB
    assert memory.peak == {"activations": MB, "logits": 4 * MB}
    memory.restart()
    assert memory.peak == {"activations": MB, "logits": 0, "kept": MB}
    del third


def test_what_is_freed_is_forgotten():
    with LiveMemory([], vocabulary=7) as memory:
        kept = torch.zeros(MB // 4)
        assert memory.now("activations") == MB
        del kept
        assert memory.now("activations") == memory.now("logits") == 0
        memory.restart()
        torch.zeros(8)
    assert memory.peak == {"activations": 32}


def test_an_operator_that_computes_in_a_copy_counts_it():
    with LiveMemory([], vocabulary=512) as memory:
        torch.zeros(512, 512).logsumexp(1)  # 1 MB, its copy and 2 kB
    assert memory.peak == {"logits": 2 * MB, "activations": 2048}


def test_tensors_without_data_count_as_those_with():
    peaks = []
    for mode in (torch.no_grad(), FakeTensorMode()):
        with mode, LiveMemory([], vocabulary=512) as memory:
            (torch.ones(300, 300) @ torch.ones(300, 512)).softmax(1).sum()
        peaks.append(memory.peak)
    assert peaks[0] == peaks[1]
    assert sum(peaks[0].values()) > 300 * 512 * 4
