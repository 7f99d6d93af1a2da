"""The fused scatter that the gather is measured against: right, so that its times mean something."""

import functools
import json

import pytest
import torch
import uninterpreted

pytest.importorskip("pandas")

from perf.measuring import workloads
from perf.measuring.gate import Gate
from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.providers import PROVIDERS, UnavailableError
from perf.measuring.rival_scatter import SCATTER, sampler
from perf.measuring.workloads import Workload
from stn_triton import policy, tuning

LAST = {"memory_format": torch.channels_last}
CASES = {
    "3 channels": ((2, 3, 9, 11), {}, "rotate-30"),
    "32 channels_last, bf16": ((2, 32, 5, 9), LAST | {"dtype": torch.bfloat16}, "zoom-2"),
    "volume": ((2, 2, 3, 5, 9), {}, "rotate-30"),
}
pytestmark = pytest.mark.filterwarnings("error:::perf")


@pytest.fixture
def make(device):
    def data(shape, options, map_name):
        return workloads.make(Workload("case", "a test", shape, **options), device, map_name=map_name)

    return data


@pytest.fixture
def kernels():
    """The names of what is launched."""
    names = []

    def choose(bucket, run):
        names.append(bucket.kernel)
        return policy.default(bucket)

    with tuning.choosing(choose):
        yield names


def computed(data, pass_name, **options):
    run = PASSES[pass_name](functools.partial(sampler, **options), data)
    return dict(zip(COMPUTED[pass_name], run(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_scatters_and_passes_the_gate_of_all_providers(make, kernels, name):
    data = make(*CASES[name])
    align_corners = name == "volume"
    verdict = Gate(data, align_corners).check(computed(data, "backward", align_corners=align_corners))
    assert verdict.passed, verdict
    assert "scatter" in kernels
    assert not any(kernel.startswith("backward") for kernel in kernels)


@pytest.mark.parametrize("pass_name", ["input", "theta"])
def test_each_gradient_alone_is_the_same(make, kernels, pass_name):
    data = make(*CASES["3 channels"])
    ((part, alone),) = computed(data, pass_name).items()
    assert kernels[-1] == {"input": "scatter_input", "theta": "theta"}[pass_name]
    torch.testing.assert_close(alone, computed(data, "backward")[part])


def test_it_takes_what_the_operator_takes(make):
    """Providers are told how many samples a pixel takes on each axis."""
    data = make(*CASES["3 channels"])
    wide, plain = (computed(data, "forward", antialias=factor) for factor in (2, 0))
    by_name = PROVIDERS["operator"].make()
    expected = by_name(data.input, data.theta, data.size, antialias=2)
    assert torch.equal(wide["output"], expected)
    assert torch.equal(plain["output"], by_name(data.input, data.theta, data.size))


@pytest.mark.parametrize(
    ("dtype", "theta", "options", "message"),
    [
        (torch.float32, (2, 5, 2, 3), {}, r"theta of shape \(2, 5, 2, 3\), only one matrix per image"),
        (torch.float32, (1, 2, 3), {}, r"theta of shape \(1, 2, 3\), only one matrix per image"),
        (torch.uint8, (2, 2, 3), {}, "gradients of uint8 images"),
        (torch.float32, (2, 2, 3), {"fill_value": 1}, "fill_value=1"),
    ],
)
def test_what_it_cannot_do_it_says(dtype, theta, options, message):
    with pytest.raises(UnavailableError, match=f"the scatter is measured without {message}"):
        sampler(torch.zeros(2, 3, 4, 4, dtype=dtype), torch.zeros(theta), (4, 4), **options)


def test_it_is_no_provider_that_users_choose():
    assert SCATTER.name not in PROVIDERS
    assert SCATTER.may_be_unavailable


COUNTING = """
import json, sys, torch
from perf.kernels import ahead, compiled
from stn_triton import launch

TARGET = ("cuda", 90, 32)
for shape, dtype, is_last, mask, is_exact in json.loads(sys.argv[1]):
    torch.use_deterministic_algorithms(is_exact)
    torch.utils.deterministic.fill_uninitialized_memory = False
    form = torch.channels_last if is_last else torch.contiguous_format
    input = torch.empty(shape, dtype=getattr(torch, dtype)).contiguous(memory_format=form)
    theta = torch.empty(shape[0], len(shape) - 2, len(shape) - 1)

    def run():
        launch.backward(torch.empty_like(input), input, theta, output_mask=mask, gathers=False)

    found = {}
    for one in ahead.compile_call(run, TARGET):
        facts = compiled.described(one.kernel, "sm_90")
        del facts["code"]
        found.setdefault(one.name.split("/")[0], []).append(facts | {"config": one.config})
    print(json.dumps(found))
"""
BOTH, INPUT, THETA = [True, True, False], [True, False, False], [False, True, False]
COMPILED = {
    "3 channels": ([8, 3, 224, 224], "float32", False, BOTH, False),
    "input alone": ([8, 3, 224, 224], "float32", False, INPUT, False),
    "theta alone": ([8, 3, 224, 224], "float32", False, THETA, False),
    "channels_last": ([4, 32, 56, 56], "bfloat16", True, BOTH, False),
    "volume": ([1, 1, 16, 32, 64], "float32", False, BOTH, False),
    "exact": ([8, 3, 224, 224], "float32", False, BOTH, True),
    "exact volume": ([1, 1, 16, 32, 64], "float32", False, INPUT, True),
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
        kernels = [facts for found in machine_code.values() for every in found.values() for facts in every]
        assert len(kernels) == len(COMPILED) + 4
        assert not [facts for facts in kernels if facts["spills"] or facts["stack"]]

    def test_an_addition_for_each_tap_and_channel(self, machine_code):
        """Per thread: 4 pixels of three channels; 16 channels of a pixel, four at a time; a voxel."""
        found = {
            name: {kernel: [facts["atomics"] for facts in every] for kernel, every in kernels.items()}
            for name, kernels in machine_code.items()
        }
        rgb, voxel = 4 * 4 * 3, 8
        assert found == {
            "3 channels": {"scatter": [rgb]},
            "input alone": {"scatter_input": [rgb]},
            "theta alone": {"theta": [0]},
            "channels_last": {"scatter": [4 * 16 // 4]},
            "volume": {"scatter": [voxel]},
            # The largest total; two whole numbers, and what is not finite, of 2 pixels.
            "exact": {"largest": [1], "exact": [3 * rgb // 4], "settle_kernel": [0]},
            "exact volume": {"largest": [1], "exact_input": [3 * voxel], "settle_kernel": [0]},
        }
