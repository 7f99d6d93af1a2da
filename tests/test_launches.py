"""What ``python -m perf tune`` tunes: buckets by dry runs, and the search on real kernels, interpreted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")

from imaginary_gpu import (  # noqa: F401
    CPU,
    FACTS,
    PLAIN,
    Clock,
    arguments,
    configs_of,
    cost,
    gpu,
    nowhere_else_fixture,
    out_fixture,
    rows_of,
    shipped_fixture,
)

from perf import tune
from perf.__main__ import main
from perf.measuring import workloads
from perf.tuning import fastest, launches
from stn_triton import launch, tables, thin_plate_spline_grid_sample, tuning
from stn_triton.buckets import Bucket
from stn_triton.kernels import forward


def small(name, shape, **changes):
    """A workload that the interpreter has the time for."""
    return replace(workloads.WORKLOADS["digits-28"], name=name, shape=shape, **changes)


@pytest.fixture
def plan():
    found, problems = launches.of_workloads([small("small", (2, 4, 8, 8))])
    assert not problems
    return found


class TestPlans:
    def test_every_workload_leads_to_buckets(self):
        plan, problems = launches.of_workloads(workloads.choose(None, torch.device("cuda")))
        sources = {case.source.split()[0] for case in plan.values()}
        names = {bucket.name() for bucket in plan}
        assert {"digits-28", "images-224", "crops-7"} <= sources
        assert "backward/2d-bilinear-zeros/nchw/float32/c1/p4096/n512" in names
        assert "forward/2d-bilinear-zeros/channels_last_16/float32/c64/p4096/n4096" in names
        assert not [problem for problem in problems if "uint8" not in problem]

    def test_the_gather_of_many_crops_and_the_sums_over_them_are_told_apart(self):
        plan, _ = launches.of_workloads(workloads.choose(["crops-7"], torch.device("cuda")))
        assert {bucket.kernel for bucket in plan} == {"forward", "backward_input", "theta"}
        (gather,) = [bucket for bucket in plan if bucket.kernel == "backward_input"]
        assert "many" in gather.variant.split("-")

    def test_a_pass_that_cannot_be_called_is_said(self):
        workload = small("bytes", (2, 1, 8, 8), dtype=torch.uint8)
        plan, problems = launches.of_workloads([workload])
        assert [(bucket.kernel, bucket.dtype) for bucket in plan] == [("forward", "uint8")]
        assert any(problem.startswith("bytes forward+backward: ") for problem in problems)

    def test_a_dry_run_reaches_what_no_workload_does(self):
        image, offsets, fill = (
            torch.empty(shape, device="meta", requires_grad=True) for shape in ((2, 3, 8, 8), (2, 4, 2), (3,))
        )

        def run():
            output = thin_plate_spline_grid_sample(image, offsets, padding_mode="fill", fill_value=fill)
            torch.autograd.grad(output, (image, offsets, fill), torch.empty_like(output))

        buckets = launches.reached(run)
        assert [bucket.kernel for bucket in buckets] == ["forward", "scatter", "fill"]
        assert {bucket.variant for bucket in buckets} == {"2d-bilinear-fill-spline"}

    def test_a_dry_run_launches_and_writes_nothing(self):
        input, theta = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 2, 3, device="meta")
        assert launch.forward(input, theta, size=(5, 6)).shape == (2, 3, 5, 6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
class TestRealKernels:
    """Interpreted, on buckets small enough for that; only the clock is not real."""

    class Launching(Clock):
        """Each launch takes longer than the one before; the second timing only pretends: they are slow."""

        def __call__(self, launch, config, ms):
            self.timed.append(launch(config) if ms == fastest.FULL.first_ms else None)
            return [1.0 + 0.1 * len(self.timed)] * 3

    @pytest.mark.parametrize("kernel", ["forward", "backward", "backward_input", "theta"])
    def test_each_configuration_of_a_bucket(self, plan, kernel):
        bucket = Bucket(kernel, PLAIN, "nchw", "float32", 4, 64, 8)
        clock = self.Launching(cost)
        with launches.OntoKernels():
            results = fastest.search(bucket, plan[bucket].make(CPU), gpu(clock), fastest.FULL)
        assert [result.config for result in results] == fastest.FULL.configs_of(bucket)
        assert [result.status for result in results] == ["ok"] * len(results)
        assert len(clock.timed) == len(results) + fastest.FULL.rounds * min(len(results), 6)

    def test_a_kernel_that_is_wrong_with_some_blocks_is_found(self, plan, monkeypatch):
        """It leaves the last program out."""
        bucket = Bucket("forward", PLAIN, "nchw", "float32", 4, 64, 8)
        space = fastest.FULL.configs_of(bucket)
        spoilt = space[-1]
        assert spoilt != space[0]

        class Short:
            arg_names = forward.forward_kernel.arg_names

            def __getitem__(self, grid):
                def launched(**arguments):
                    known = {**arguments["K"]._asdict(), "num_warps": arguments["num_warps"]}
                    is_spoilt = all(known[key] == value for key, value in spoilt.items())
                    launch_kernel[(grid[0] - is_spoilt,)](**arguments)

                return launched

        launch_kernel = forward.forward_kernel
        monkeypatch.setattr(forward, "forward_kernel", Short())
        with launches.OntoKernels():
            results = fastest.search(bucket, plan[bucket].make(CPU), gpu(self.Launching(cost)), fastest.FULL)
        assert [result.config for result in results if result.status != "ok"] == [spoilt]

    def test_a_workload_through_autograd(self, out, shipped):
        plan, _ = launches.of_workloads([small("tiny", (2, 1, 7, 6))])
        assert {"forward", "backward"} <= {bucket.kernel for bucket in plan}
        with launches.OntoKernels():
            assert tune.tune(arguments(out), gpu(self.Launching(cost)), plan) == 0
        assert (rows_of(out)["status"] == "ok").all()
        assert set(configs_of(shipped)) == {bucket.name() for bucket in plan}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGpu:
    def test_a_quick_run(self, out, capsys):
        assert main(["tune", "--quick", "--out", str(out), "--json"]) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
        assert len(found["buckets"]) == tune.QUICK_BUCKETS
        name = torch.cuda.get_device_name()
        table = tables.read(Path(found["table"]), name)
        assert len(table.parsed(tuning.checked)[0]) == tune.QUICK_BUCKETS
        assert table.kernels == tables.kernels()
        rows = rows_of(out)
        assert set(rows["device"]) == {name}
        assert (rows["status"] == "ok").all(), rows["status"].unique()
        assert (rows["median_ms"] > 0).all()

    def test_calls_of_every_kernel_of_matrices(self, out):
        options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
        chosen = [small("vectors", (2, 32, 16, 16), **options), small("crops", (2, 3, 16, 16), crops=4)]
        plan, problems = launches.of_workloads(chosen)
        assert not problems
        assert {bucket.kernel for bucket in plan} == {"forward", "backward", "backward_input", "theta"}
        assert {bucket.layout for bucket in plan} == {"channels_last_16", "nchw"}
        there = fastest.Gpu(torch.device("cuda", 0), FACTS)
        assert tune.tune(arguments(out, "--quick"), there, plan) == 0
        assert (rows_of(out)["status"] == "ok").all()
