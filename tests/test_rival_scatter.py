"""The fused scatter that the gather is measured against: right, so that its times mean something."""

import functools
import json
from dataclasses import replace

import pytest
import torch
import uninterpreted

pytest.importorskip("pandas")

from perf.kernels.rival_scatter import SCATTER, blocks, sampler
from perf.measuring import workloads
from perf.measuring.gate import Gate
from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.providers import PROVIDERS, UnavailableError
from perf.measuring.workloads import Workload

LAST = {"memory_format": torch.channels_last}
BF16, FP16 = {"dtype": torch.bfloat16}, {"dtype": torch.float16}
# Tiles and a bit: 16 x 32 for one channel, 16 x 16 for up to four, 8 x 16, and fewer in channels_last.
CASES = {
    "1 channel": ((3, 1, 17, 33), {}, "identity"),
    "3 channels": ((2, 3, 17, 20), {}, "rotate-30"),
    "3 channels, enlarged": ((2, 3, 16, 16), {}, "zoom-2"),
    "5 channels": ((2, 5, 9, 17), {}, "rotate-30"),
    "16 channels": ((2, 16, 9, 17), {}, "rotate-30"),
    "33 channels, in blocks of 11": ((2, 33, 7, 9), {}, "zoom-2"),
    "3 channels_last, fp16": ((3, 3, 9, 9), LAST | FP16, "rotate-30"),
    "32 channels_last": ((2, 32, 9, 10), LAST, "rotate-30"),
    "96 channels_last, in blocks of 48": ((2, 96, 5, 9), LAST, "zoom-2"),
    "48 channels_last, bf16": ((2, 48, 9, 10), LAST | BF16, "identity"),
    "volume": ((2, 2, 3, 9, 10), {}, "rotate-30"),
}
pytestmark = pytest.mark.filterwarnings("error:::perf")


@pytest.fixture
def make(device):
    def data(shape, options, map_name):
        return workloads.make(Workload("case", "a test", shape, **options), device, map_name=map_name)

    return data


def computed(data, pass_name, **options):
    run = PASSES[pass_name](functools.partial(sampler, **options), data)
    return dict(zip(COMPUTED[pass_name], run(), strict=True))


def judged(data, align_corners=False):
    return Gate(data, align_corners).check(computed(data, "backward", align_corners=align_corners))


@pytest.mark.parametrize("name", CASES)
def test_it_passes_the_gate_of_all_providers(make, name):
    verdict = judged(make(*CASES[name]))
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", ["3 channels", "volume"])
def test_so_it_does_where_corners_are_centres(make, name):
    verdict = judged(make(*CASES[name]), align_corners=True)
    assert verdict.passed, verdict


@pytest.mark.parametrize("pass_name", ["input", "theta"])
@pytest.mark.parametrize("name", ["5 channels", "48 channels_last, bf16", "volume"])
def test_each_gradient_alone_is_the_same(make, name, pass_name):
    data = make(*CASES[name])
    ((part, alone),) = computed(data, pass_name).items()
    torch.testing.assert_close(alone, computed(data, "backward")[part])


def test_repeated_calls_do_not_accumulate(make):
    data = make(*CASES["5 channels"])
    run = PASSES["backward"](SCATTER.make(), data)
    first, again = run(), run()
    torch.testing.assert_close(again, first)


def test_gradients_of_any_strides(make):
    data = make(*CASES["32 channels_last"])
    found = computed(replace(data, grad_output=data.grad_output.mT.contiguous().mT), "backward")
    assert Gate(data).check(found).passed
    assert found["grad_input"].stride() == data.input.stride()


@pytest.mark.parametrize(
    ("dtype", "theta", "options", "message"),
    [
        (torch.float32, (2, 2, 3), {"mode": "bicubic"}, "no mode='bicubic'"),
        (torch.float32, (2, 2, 3), {"padding_mode": "border"}, "no padding_mode='border'"),
        (torch.float32, (2, 2, 3), {"antialias": 2}, "no antialias=2"),
        (torch.float32, (2, 5, 2, 3), {}, r"no theta of shape \(2, 5, 2, 3\)"),
        (torch.float32, (1, 2, 3), {}, r"no theta of shape \(1, 2, 3\)"),
        (torch.float32, (2, 3, 3), {}, r"no theta of shape \(2, 3, 3\)"),
        (torch.uint8, (2, 2, 3), {}, "no uint8 images"),
        (torch.float64, (2, 2, 3), {"antialias": 2}, "no antialias=2, no float64 images"),
    ],
)
def test_what_it_cannot_do_it_says(dtype, theta, options, message):
    with pytest.raises(UnavailableError, match=f"the fused scatter has {message}"):
        sampler(torch.zeros(2, 3, 4, 4, dtype=dtype), torch.zeros(theta), (4, 4), **options)


def test_it_is_no_provider_that_users_choose():
    assert SCATTER.name not in PROVIDERS
    assert SCATTER.may_be_unavailable


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_blocks_are_such_as_the_kernel_takes(dim, is_last, itemsize):
    for channels in range(1, 300):
        config = blocks(channels, dim, is_last, itemsize)
        block_c, run_c = config["BLOCK_C"], config["RUN_C"]
        assert run_c == (16 if is_last and channels % 16 == 0 else 1)
        assert block_c % run_c == 0
        count = -(-channels // block_c)
        assert config["STEPS_C"] <= count
        assert block_c * count - channels < run_c * count  # each block lacks less than a run
        values = block_c * config["BLOCK_H"] * config["BLOCK_W"] / (32 * config["num_warps"])
        assert values <= 16


COUNTING = """
import json, sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from perf.kernels import compiled
from perf.kernels.rival_scatter import gradients
from stn_triton.options import Options

class Driver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

def compile_only(self, *args, grid, warmup, **kwargs):
    kernels.append(launch(self, *args, grid=grid, warmup=True, **kwargs))

launch, JITFunction.run, kernels = JITFunction.run, compile_only, []
driver.set_active(Driver())
for shape, dtype, is_last, needs in json.loads(sys.argv[1]):
    form = torch.channels_last if is_last else torch.contiguous_format
    input = torch.empty(shape, dtype=getattr(torch, dtype)).contiguous(memory_format=form)
    theta = torch.empty(shape[0], len(shape) - 2, len(shape) - 1)
    gradients(torch.empty_like(input), input, theta, Options(), needs)
    facts = compiled._nvidia(kernels[-1])
    facts["executed"] = facts.pop("code").executed([])
    print(json.dumps(facts))
"""
COMPILED = {
    "1 channel": ([8, 1, 28, 28], "float32", False, [True, True]),
    "3 channels": ([8, 3, 224, 224], "float32", False, [True, True]),
    "theta alone": ([8, 3, 224, 224], "float32", False, [False, True]),
    "channels_last": ([4, 32, 56, 56], "bfloat16", True, [True, True]),
    "volume": ([1, 1, 16, 32, 64], "float32", False, [True, True]),
}


@pytest.fixture(scope="module")
def machine_code():
    """Of each case; in another process, since interpreted kernels cannot be compiled."""
    done = uninterpreted.python("-c", COUNTING, json.dumps(list(COMPILED.values())))
    assert done.returncode == 0, done.stderr
    return dict(zip(COMPILED, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.xdist_group("static")
class TestMachineCode:
    def test_nothing_spills(self, machine_code):
        assert not [name for name, facts in machine_code.items() if facts["spills"] or facts["stack"]]

    def test_an_addition_for_each_tap_and_channel(self, machine_code):
        """Per thread: 4 pixels of one channel, 2 of three; 8 pairs of two runs of 4 of 32 channels."""
        found = {name: facts["atomics"] for name, facts in machine_code.items()}
        assert found == {
            "1 channel": 4 * 4,
            "3 channels": 4 * 2 * 3,
            "theta alone": 0,
            "channels_last": 4 * 4,
            "volume": 8 * 4,
        }

    def test_it_is_as_fast_as_a_rival_should_be(self, machine_code):
        """Instructions of a thread, over its pixels: as PyTorch's own kernel has them, or fewer."""
        executed = {name: facts["executed"] for name, facts in machine_code.items()}
        assert executed["1 channel"] / 4 < 270
        assert executed["3 channels"] / 2 < 450
        assert executed["volume"] / 4 < 470
