"""The fused scatter that the gather is measured against: right, so that its times mean something."""

import pytest
import torch

pytest.importorskip("pandas")

from perf.measuring import workloads
from perf.measuring.gate import Gate
from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.rival_scatter import sampler
from perf.measuring.workloads import Workload
from stn_triton import policy, tuning

LAST = {"memory_format": torch.channels_last}
CASES = {
    "3 channels": ((2, 3, 9, 11), {}, "rotate-30"),
    "32 channels_last, bf16": ((2, 32, 5, 9), LAST | {"dtype": torch.bfloat16}, "zoom-2"),
    "volume": ((2, 2, 3, 5, 9), {}, "rotate-30"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pass_name", ["backward", "input", "theta"])
def test_it_scatters_and_passes_the_gate_of_all_providers(device, name, pass_name):
    shape, options, map_name = CASES[name]
    data = workloads.make(Workload("case", "a test", shape, **options), device, map_name)
    launched = []

    def choose(bucket, run):
        launched.append(bucket.kernel)
        return policy.default(bucket)

    with tuning.choosing(choose):
        tensors = PASSES[pass_name](sampler, data)()
    verdict = Gate(data).check(dict(zip(COMPUTED[pass_name], tensors, strict=True)))
    assert verdict.passed, verdict
    assert launched[-1] == {"backward": "scatter", "input": "scatter_input", "theta": "theta"}[pass_name]
