"""What ends a run from outside."""

import os
import signal

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffstyler.distributed import ended_by_sigterm


@pytest.fixture
def told():
    """Signals that the handler of before was told of."""
    told = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum))
    yield told
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_what_runs_inside_at_once(told):
    before = signal.getsignal(signal.SIGTERM)

    @ended_by_sigterm()
    def long_work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    with pytest.raises(SIGTERMException):
        long_work()
    assert signal.getsignal(signal.SIGTERM) is before
    assert told == [signal.SIGTERM]
