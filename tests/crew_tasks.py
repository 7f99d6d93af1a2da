"""Tasks for the tests of `perf.evidence.crew`: processes import this module, and it imports little."""

import os

from perf.evidence.crew import SpoiltError

calls = 0


def square(number):
    if number == 3:
        os._exit(1)
    if number == 5:
        raise ValueError("five")
    return number**2


def process(number):
    if number == 10:
        os._exit(1)
    return os.getpid()


def spoilt(number):
    global calls
    calls += 1
    if calls > 2:
        raise SpoiltError("this process has done its share")
    return number
