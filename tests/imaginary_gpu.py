"""A GPU that is not there, for the tests of ``python -m perf tune``: its buckets, calls and clock."""

import json
from unittest import mock

import pandas as pd
import pytest
import torch
from made_up import CUDA

from perf import tune
from perf.__main__ import build_parser
from perf.tuning import fastest
from stn_triton import buckets, tuning
from stn_triton.options import DEFAULT

CPU = torch.device("cpu")
FACTS = CUDA | {"device": "Imaginary GPU (80 GB)", "commit": "0123456789"}
PLAIN = buckets.variant_of(2, False, False, False, DEFAULT)
BUCKETS = [
    buckets.bucket_of("forward", PLAIN, False, torch.float32, 8, 3, 224 * 224),
    buckets.bucket_of("backward", PLAIN, False, torch.bfloat16, 32, 64, 56 * 56),
    buckets.bucket_of("theta", PLAIN, True, torch.float32, 32, 64, 56 * 56),
]


def configs(bucket):
    return tuning.candidates(bucket, tune.CONFIGS)


def cost(bucket, config):
    """The last configuration is the fastest; for the theta kernel the default."""
    index, last = configs(bucket).index(config), len(configs(bucket)) - 1
    return 1 + (index if bucket.kernel == "theta" else last - index) / 10


BEST = {bucket.name(): configs(bucket)[0 if bucket.kernel == "theta" else -1] for bucket in BUCKETS}


class Clock:
    """Milliseconds of a launch by ``cost``; notes what was timed, and may stop at one."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.calls, self.timed = [], []

    def __call__(self, launch, config, ms):
        if len(self.timed) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((config, ms))
        self.timed.append(launch(config))
        median = cost(self.timed[-1], config)
        return [0.995 * median, median, 1.005 * median]


class Launching(Clock):
    """Launches in the first round; all configurations take as long."""

    def __call__(self, launch, config, ms):
        if ms == fastest.FIRST_MS:
            launch(config)
        return [1.0] * 3


def call_of(bucket, result=lambda bucket, config: torch.arange(6.0)):
    """A call that launches nothing, but chooses a configuration as a call would."""

    def make(device):
        return lambda: (result(bucket, tuning.configuration(bucket, device, lambda config: bucket)),)

    return make


def plan_of(*buckets, **options):
    return {bucket: call_of(bucket, **options) for bucket in buckets}


def arguments(out, *options):
    return build_parser().parse_args(["tune", "--out", str(out), *options])


def run(out, *buckets, clock=None, options=(), status=0, plan=None, **facts):
    """Tune; returns the buckets that were timed."""
    clock = clock or Clock()
    with (
        mock.patch.object(fastest, "milliseconds", clock),
        mock.patch.object(tune.setting, "facts", return_value={**FACTS, **facts}),
    ):
        assert tune.tune(arguments(out, *options), CPU, plan or plan_of(*buckets)) == status
    return set(clock.timed)


def rows_of(out, name="tuning.csv"):
    return pd.read_csv(out / name, dtype={"commit": str})


def configs_of(path):
    return json.loads(path.read_text())["configs"]


@pytest.fixture(name="shipped", autouse=True)
def shipped_fixture(tmp_path, monkeypatch):
    """The table that a run writes; none of this checkout is."""
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "package")
    tuning.shipped.cache_clear()
    yield tuning.SHIPPED / "imaginary-gpu-80-gb.json"
    tuning.shipped.cache_clear()


@pytest.fixture(name="out")
def out_fixture(tmp_path):
    return tmp_path / "out"
