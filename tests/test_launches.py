"""``python -m perf tune``: buckets by dry runs, and the search on real kernels, interpreted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")

from imaginary_gpu import (  # noqa: F401
    PLAIN,
    arguments,
    configs,
    configs_of,
    out_fixture,
    rows_of,
    run,
    shipped_fixture,
)

from perf import tune
from perf.__main__ import main
from perf.measuring import workloads
from perf.tuning import fastest, launches
from stn_triton import policy, tables, thin_plate_spline_grid_sample, tuning
from stn_triton.buckets import Bucket
from stn_triton.kernels import forward


def small(name, shape, **changes):
    """A workload that the interpreter has the time for."""
    return replace(workloads.WORKLOADS["digits-28"], name=name, shape=shape, **changes)


class TestPlans:
    def test_workloads_lead_to_buckets(self):
        first, last, crops = (
            launches.of_workloads([workloads.WORKLOADS[name]])
            for name in ("digits-28", "features-64-channels-last", "crops-7")
        )
        names = {bucket.name() for bucket in (*first, *last)}
        assert "backward/2d-bilinear-zeros/nchw/float32/c1/p4096/n512" in names
        assert "forward/2d-bilinear-zeros/channels_last_16/float32/c64/p4096/n4096" in names
        assert {bucket.kernel for bucket in crops} == {"forward", "backward_input", "theta"}
        (gather,) = [bucket for bucket in crops if bucket.kernel == "backward_input"]
        assert "many" in gather.variant.split("-")

    def test_whole_numbers_have_only_a_forward(self):
        plan = launches.of_workloads([small("bytes", (2, 1, 8, 8), dtype=torch.uint8)])
        assert [(bucket.kernel, bucket.dtype) for bucket in plan] == [("forward", "uint8")]

    def test_a_dry_run_reaches_the_kernels_of_other_calls(self):
        image, offsets, fill = (
            torch.empty(shape, device="meta", requires_grad=True) for shape in ((2, 3, 8, 8), (2, 4, 2), (3,))
        )

        def run():
            output = thin_plate_spline_grid_sample(image, offsets, padding_mode="fill", fill_value=fill)
            torch.autograd.grad(output, (image, offsets, fill), torch.empty_like(output))

        buckets = launches.reached(run)
        assert [bucket.kernel for bucket in buckets] == ["forward", "scatter", "fill"]
        assert {bucket.variant for bucket in buckets} == {"2d-bilinear-fill-spline"}

    def test_the_call_of_each_bucket_launches_it_while_it_is_tuned(self, monkeypatch):
        """Then fresh memory is filled, for which PyTorch's deterministic mode is on."""
        chosen = list(workloads.WORKLOADS.values())
        plan = launches.of_workloads(chosen)
        made = {workload.name: launches.dry(workload) for workload in chosen}
        monkeypatch.setattr(workloads, "make", lambda workload, device: made[workload.name])
        assert {bucket.kernel for bucket in plan} >= {"forward", "backward", "scatter", "scatter_input"}
        for bucket, make in plan.items():
            with launches.OntoKernels():
                fastest._with(bucket, policy.default(bucket), make(launches.META))


class Launching:
    """Launches in the first round, each taking longer than the one before; later rounds only pretend."""

    def __init__(self):
        self.timed = []

    def __call__(self, launch, config, ms):
        self.timed.append(launch(config) if ms == fastest.FIRST_MS else None)
        return [1.0 + 0.1 * len(self.timed)] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
class TestRealKernels:
    """Interpreted, on buckets small enough for that; only the clock is not real."""

    def test_a_kernel_that_is_wrong_with_some_blocks_is_found(self, out, monkeypatch):
        """It leaves the last program out."""
        bucket = Bucket("forward", PLAIN, "nchw", "float32", 4, 64, 8)
        plan = {bucket: launches.of_workloads([small("small", (2, 4, 7, 6))])[bucket]}
        *others, spoilt = configs(bucket)
        launch_kernel = forward.forward_kernel

        class Short:
            arg_names = launch_kernel.arg_names

            def __getitem__(self, grid):
                def launched(**arguments):
                    known = {**arguments["K"]._asdict(), "num_warps": arguments["num_warps"]}
                    is_spoilt = all(known[key] == value for key, value in spoilt.items())
                    launch_kernel[(grid[0] - is_spoilt,)](**arguments)

                return launched

        monkeypatch.setattr(forward, "forward_kernel", Short())
        with launches.OntoKernels():
            run(out, clock=Launching(), plan=plan, status=1)
        *right, wrong = rows_of(out)["status"]
        assert right == ["ok"] * len(others)
        assert wrong.startswith("FAILED: result 0 is off by ")

    @pytest.mark.full
    @pytest.mark.parametrize("channels", [1, 4])
    def test_each_configuration_of_a_workload_through_autograd(self, out, shipped, channels):
        plan = launches.of_workloads([small(f"small-{channels}", (2, channels, 7, 6))])
        assert {bucket.kernel for bucket in plan} == {"forward", "backward", "backward_input", "theta"}
        with launches.OntoKernels():
            run(out, clock=Launching(), plan=plan)
        assert (rows_of(out)["status"] == "ok").all()
        assert set(configs_of(shipped)) == {bucket.name() for bucket in plan}


@pytest.mark.gpu
class TestOnAGpu:
    def test_a_quick_run(self, out, capsys):
        assert main(["tune", "--quick", "--out", str(out), "--json"]) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
        name = torch.cuda.get_device_name()
        table = tables.read(Path(found["table"]), name)
        assert len(found["buckets"]) == len(table.parsed(tuning.checked)[0]) == tune.QUICK_BUCKETS
        rows = rows_of(out, "tuning-quick.csv")
        assert set(rows["device"]) == {name}
        assert set(rows["status"]) == {"ok"}
        assert (rows["median_ms"] > 0).all()

    def test_calls_of_every_kernel_of_matrices(self, out):
        options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
        chosen = [small("vectors", (2, 32, 16, 16), **options), small("crops", (2, 3, 16, 16), crops=4)]
        plan = launches.of_workloads(chosen)
        assert {bucket.kernel for bucket in plan} == {"forward", "backward", "backward_input", "theta"}
        assert tune.tune(arguments(out, "--quick"), torch.device("cuda", 0), plan) == 0
        assert set(rows_of(out, "tuning-quick.csv")["status"]) == {"ok"}
