"""A GPU that is not there, for the tests of ``python -m perf tune``: its buckets, calls and clock."""

import json
from argparse import Namespace

import pandas as pd
import pytest
import torch

from perf.__main__ import build_parser
from perf.tuning import fastest
from perf.tuning.launches import Case
from stn_triton import buckets, tuning
from stn_triton.options import DEFAULT

CPU = torch.device("cpu")
FACTS = {
    "device": "Imaginary GPU (80 GB)",
    "torch": "2.13.0",
    "triton": "3.7.1",
    "commit": "0123456789",
    "date": "2026-01-01T00:00:00+00:00",
}
PLAIN = buckets.variant_of(2, False, False, False, DEFAULT)
BUCKETS = [
    buckets.bucket_of("forward", PLAIN, False, torch.float32, 8, 3, 224 * 224),
    buckets.bucket_of("backward", PLAIN, False, torch.bfloat16, 32, 64, 56 * 56),
    buckets.bucket_of("theta", PLAIN, True, torch.float32, 32, 64, 56 * 56),
]


def same(bucket, config):
    return torch.arange(6.0)


class Clock:
    """Milliseconds of a launch, from a table of costs; counts launches, and may stop at one."""

    def __init__(self, cost, stop_at=None, stop=KeyboardInterrupt):
        self.cost, self.stop_at, self.stop = cost, stop_at, stop
        self.timed = []

    def __call__(self, launch, config, ms):
        if len(self.timed) == self.stop_at:
            raise self.stop
        bucket = launch(config)
        self.timed.append(bucket)
        median = self.cost(bucket, config)
        return [0.995 * median, median, 1.005 * median]


def cost(bucket, config):
    """Some configuration or other is fastest; that of the theta kernel is the default."""
    configs = fastest.FULL.configs_of(bucket)
    index, last = configs.index(config), len(configs) - 1
    return 1 + (index if bucket.kernel == "theta" else last - index) / 10


def count_timed(bucket):
    """How often a whole search times a configuration of a bucket."""
    configs = len(fastest.FULL.configs_of(bucket))
    return configs + fastest.FULL.rounds * min(configs, 1 + fastest.FULL.finalists)


def expected_best(bucket):
    return min(fastest.FULL.configs_of(bucket), key=lambda config: cost(bucket, config))


def case(bucket, result=same):
    """A call that launches nothing but asks for a configuration, as a call would."""

    def make(device):
        def run():
            chosen = []

            def launch(config):
                chosen.append(config)
                return bucket

            config = tuning.configuration(bucket, device, launch)
            return (result(bucket, config),)

        return run

    return Case("imagined", make)


def plan_of(*buckets, result=same):
    return {bucket: case(bucket, result) for bucket in buckets}


def arguments(out, *options) -> Namespace:
    return build_parser().parse_args(["tune", "--out", str(out), *options])


def gpu(clock=None, alive=lambda device: True, **facts):
    return fastest.Gpu(CPU, {**FACTS, **facts}, clock or Clock(cost), alive)


def rows_of(out):
    return pd.read_csv(out / "tuning.csv", dtype={"commit": str})


def configs_of(path):
    return json.loads(path.read_text())["configs"]


BEST = {bucket.name(): expected_best(bucket) for bucket in BUCKETS}


@pytest.fixture(name="nowhere_else", autouse=True)
def nowhere_else_fixture(tmp_path, monkeypatch):
    """No table of this checkout is written."""
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "package" / "tuned")
    (tmp_path / "package").mkdir()
    tuning.shipped.cache_clear()
    yield tmp_path
    tuning.shipped.cache_clear()


@pytest.fixture(name="shipped")
def shipped_fixture(nowhere_else):
    return tuning.SHIPPED / "imaginary-gpu-80-gb.json"


@pytest.fixture(name="out")
def out_fixture(tmp_path):
    return tmp_path / "out"
