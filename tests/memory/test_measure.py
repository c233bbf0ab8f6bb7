"""A pack as wide as the memory holds."""

import logging

import pytest
import torch

from diffstyler.memory import measure
from diffstyler.memory.measure import free_memory, optimizer_memory, step_memory, widest_pack

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "at_most", "width"), [(14, 100, 12), (14, 5, 5), (9, 100, 8), (1000, 100, 32), (1, 100, 1), (0, 100, 1)]
)
def test_the_widest_pack_that_fits(free, at_most, width):
    assert widest_pack(GIB, free * GIB, at_most) == width


def test_it_says_what_it_chose(caplog):
    with caplog.at_level(logging.INFO):
        widest_pack(int(0.85 * GIB), 14 * GIB, 100)
        widest_pack(2 * GIB, GIB, 100)
    assert caplog.messages == ["pack of 16: 13.6 of 14.0 GiB", "pack of 1: 2.0 of 1.0 GiB"]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_processes_share_the_machine_within_its_control_group(tmp_path, monkeypatch):
    alone, shared = (free_memory(torch.device("cpu"), n) for n in (1, 4))
    assert 0 < shared < alone
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(measure, "_CGROUP", tmp_path)
    assert free_memory(torch.device("cpu"), 2) == int(0.85 * 2000 / 2)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu"), 1) > 2000


def test_a_step_costs_what_its_backward_pass_needs():
    frozen, x = torch.randn(8, 8), torch.randn(100, 8)
    weight = torch.randn(8, 8, requires_grad=True)

    def cost(rows: int) -> int:
        return step_memory(lambda: ((x[:rows].clone() @ weight).sin() @ frozen).sum(), [frozen, weight], x.device)

    assert cost(100) == int(1.25 * 2 * 100 * 8 * 4)  # the input, and the argument of the sine
    assert cost(50) == cost(100) // 2


def test_an_optimizer_costs_its_state():
    row = torch.zeros(1000)
    assert optimizer_memory(lambda p: torch.optim.SGD(p, lr=0.1), row) == 8000
    adam = optimizer_memory(lambda p: torch.optim.AdamW(p, lr=0.1), row)
    assert 16000 <= adam < 16100
