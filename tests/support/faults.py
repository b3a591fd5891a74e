"""Forked processes that run a function, and may be killed at any moment."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="no fork on this system")


def start(function, *arguments):
    """A process that calls the function, and a connection that receives its result or error."""
    here, there = FORK.Pipe()

    def run():
        torch.set_num_threads(1)  # threads of torch do not survive a fork
        try:
            result = function(*arguments)
        except Exception as error:
            result = error
        there.send(result)

    process = FORK.Process(target=run)
    process.start()
    there.close()
    return process, here


def result_of(process, connection):
    found = connection.recv()
    process.join()
    return found


def kill_after(seconds, process):
    """Kill -9; returns whether the process was still running."""
    time.sleep(seconds)
    running = process.is_alive()
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return running


def flipped(content, start, length):
    """The content with some bytes inverted."""
    middle = bytes(byte ^ 0xFF for byte in content[start : start + length])
    return content[:start] + middle + content[start + length :]
