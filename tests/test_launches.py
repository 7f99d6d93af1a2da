"""What ``python -m perf tune`` tunes: buckets by dry runs, and the search on real kernels, interpreted."""

import json
import random
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
from perf.tuning import every_bucket, launches, search
from perf.tuning.launches import META
from stn_triton import launch, tables, tuning
from stn_triton.tuning import Bucket


@pytest.fixture(scope="module")
def every():
    return every_bucket.plan()


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
        workload = replace(workloads.WORKLOADS["digits-28"], name="bytes", dtype=torch.uint8)
        plan, problems = launches.of_workloads([workload])
        assert [(bucket.kernel, bucket.dtype) for bucket in plan] == [("forward", "uint8")]
        assert any(problem.startswith("bytes forward+backward: ") for problem in problems)

    def test_each_kind_of_call_launches_its_bucket_alone(self, every):
        """Of each kernel and variant one size, layout and dtype, run dry."""
        found = {}
        for bucket, case in every.items():
            found.setdefault((bucket.kernel, bucket.variant), []).append((bucket, case))
        assert len(found) > 400
        chance = random.Random(0)
        for kind in found.values():
            bucket, case = chance.choice(kind)
            assert launches.reached(case.make(META)) == [bucket]

    def test_each_size_of_the_plain_forward_is_reached(self, every):
        plain = {b: case for b, case in every.items() if b.kernel == "forward" and b.variant == PLAIN}
        for bucket, case in plain.items():
            if bucket.dtype in ("float32", "uint8"):
                assert launches.reached(case.make(META)) == [bucket]
        for field, values in (
            ("layout", {"nchw", "channels_last", "channels_last_16"}),
            ("dtype", {"float32", "bfloat16", "float16", "float64", "uint8"}),
            ("channels", {1, 2, 4, 8, 16, 32, 64, 128}),
            ("pixels", {64, 512, 4096, 32768}),
            ("planes", {8, 64, 512, 4096}),
        ):
            assert {getattr(bucket, field) for bucket in plain} == values

    def test_what_workloads_reach_is_among_them(self, every):
        plan, _ = launches.of_workloads(workloads.choose(None, torch.device("cuda")))
        assert set(plan) <= set(every)

    def test_what_no_call_launches_is_not_among_them(self, every):
        for bucket in every:
            flags = set(bucket.variant.split("-"))
            assert not {"3d", "bicubic"} <= flags
            assert not ({"nearest"} <= flags and bucket.kernel in ("theta", "backward"))
            assert bucket.planes * 8 > bucket.channels  # at least one image
            assert not (bucket.dtype == "uint8" and bucket.kernel != "forward")
            assert not (bucket.layout != "nchw" and bucket.channels == 1)

    def test_no_call_needs_more_memory_than_it_may(self, every):
        sizes = every_bucket.sizes(False) + every_bucket.sizes(True)
        assert max(n * c * side * side for n, c, side in sizes) <= every_bucket.MAX_ELEMENTS

    def test_a_dry_run_launches_and_writes_nothing(self):
        input, theta = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 2, 3, device="meta")
        assert launch.forward(input, theta, (5, 6)).shape == (2, 3, 5, 6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
class TestRealKernels:
    """Interpreted, on buckets small enough for that; only the clock is not real."""

    class Launching(Clock):
        """Each launch takes longer than the one before; the second timing only pretends: they are slow."""

        def __call__(self, launch, config, ms):
            self.timed.append(launch(config) if ms == search.FULL.first_ms else None)
            return [1.0 + 0.1 * len(self.timed)] * 3

    @pytest.mark.parametrize("kernel", ["forward", "backward", "theta"])
    def test_a_generated_call(self, every, kernel):
        bucket = Bucket(kernel, PLAIN, "nchw", "float32", 4, 64, 8)
        clock = self.Launching(cost)
        results = search.search(bucket, every[bucket].make(CPU), gpu(clock), search.FULL)
        assert [result.config for result in results] == tuning.space(bucket)
        assert [result.status for result in results] == ["ok"] * len(results)
        assert len(clock.timed) == len(results) + search.FULL.rounds * min(len(results), 6)

    def test_a_kernel_that_is_wrong_with_some_blocks_is_found(self, every, monkeypatch):
        """It leaves the last program out."""
        bucket = Bucket("forward", PLAIN, "nchw", "float32", 4, 64, 8)
        space = tuning.space(bucket)
        spoilt = space[-1]
        assert spoilt != space[0]

        class Short:
            arg_names = launch.forward_kernel.arg_names

            def __getitem__(self, grid):
                def launched(**arguments):
                    is_spoilt = all(arguments.get(key, value) == value for key, value in spoilt.items())
                    launch_kernel[(grid[0] - is_spoilt,)](**arguments)

                return launched

        launch_kernel = launch.forward_kernel
        monkeypatch.setattr(launch, "forward_kernel", Short())
        results = search.search(bucket, every[bucket].make(CPU), gpu(self.Launching(cost)), search.FULL)
        assert [result.config for result in results if result.status != "ok"] == [spoilt]

    def test_a_workload_through_autograd(self, out, shipped):
        tiny = replace(workloads.WORKLOADS["digits-28"], name="tiny", shape=(2, 1, 7, 6))
        plan, _ = launches.of_workloads([tiny])
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
        entries, kernels = tables.load(Path(found["table"]), tuning.checked, name)
        assert len(entries) == tune.QUICK_BUCKETS
        assert kernels == tables.kernels()
        rows = rows_of(out)
        assert set(rows["device"]) == {name}
        assert (rows["status"] == "ok").all(), rows["status"].unique()
        assert (rows["median_ms"] > 0).all()

    def test_generated_calls_of_every_kernel(self, out):
        plan = {
            bucket: case
            for bucket, case in every_bucket.plan().items()
            if bucket[1:]
            in (
                ("2d-bilinear-fill", "channels_last_16", "bfloat16", 32, 512, 64),
                ("2d-bilinear-zeros-many", "nchw", "float32", 4, 512, 64),
            )
        }
        assert {bucket.kernel for bucket in plan} == {
            "forward",
            "backward",
            "backward_input",
            "theta",
            "fill",
        }
        there = search.Gpu(torch.device("cuda", 0), FACTS)
        assert tune.tune(arguments(out, "--quick"), there, plan) == 0
        assert (rows_of(out)["status"] == "ok").all()
