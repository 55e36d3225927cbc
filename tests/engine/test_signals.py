"""The stop flag."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from msgdas.engine.run.signals import StopFlag


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_flag_is_set_and_handlers_come_back(signum):
    before = signal.getsignal(signum)
    with StopFlag() as flag:
        assert not flag()
        os.kill(os.getpid(), signum)
        assert flag() and flag.raised == signum
    assert signal.getsignal(signum) is before


def test_fault_03_a_second_signal_acts_at_once():
    program = """
        import os, signal, time
        from msgdas.engine.run.signals import StopFlag
        with StopFlag():
            os.kill(os.getpid(), signal.SIGTERM)
            print("still here", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=20
    )
    assert result.returncode == -signal.SIGTERM and result.stdout == "still here\n"
