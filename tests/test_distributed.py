"""Several processes: the sharding rules of DTensors, and their use by two processes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import variants
from processes import CHANNELS, CHECKS, PROCESSES, REPLICATED, work
from torch.distributed.tensor import DTensor, Partial, Shard

from stn_triton import ops, sharding

pytestmark = pytest.mark.xdist_group("distributed")


def call(op, case, options, output_mask=(True, True, True)):
    """Return the arguments of an operator, by name."""
    known = {**case._asdict(), **options._asdict(), "grad_output": case.grad, "output_mask": output_mask}
    known.update({f"{name}_tangent": t for name, t in variants.tangents_of(case)._asdict().items()})
    return {argument.name: known[argument.name] for argument in op._schema.arguments}


def shardings(op, arguments):
    def spec(value):
        if not isinstance(value, torch.Tensor):
            return value
        mesh = SimpleNamespace(size=lambda: PROCESSES)
        return SimpleNamespace(shape=value.shape, placements=(REPLICATED,), mesh=mesh)

    return sharding._shardings(op, *map(spec, arguments.values()))


def joined(shards, placement):
    if placement.is_shard():
        return torch.cat(shards, placement.dim)
    if placement.is_partial():
        return sum(shards)
    torch.testing.assert_close(shards[0], shards[1])
    return shards[0]


def one_image(variant):
    case = variants.case(variant._replace(kind="many"), channels=3)
    return case._replace(input=case.input[:1])


KINDS = {kind: lambda v: variants.case(v, channels=3) for kind in variants.KINDS} | {"one image": one_image}


class TestRules:
    """Apply each rule as two processes would: cut, call the operator on each shard, join."""

    @pytest.mark.parametrize("op", ops.OPERATORS, ids=str)
    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("padding_mode", ["border", "fill"])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.sample(40)
    def test_shards_joined_are_the_whole(self, kind, padding_mode, dim, op):
        variant = variants.Variant(dim, "bilinear", padding_mode, kind, False)
        if not variant.exists():
            pytest.skip("projective maps are for images")
        case = KINDS[kind](variant)
        arguments = call(op, case, variant.options(), (True, True, padding_mode == "fill"))
        expected = op(*arguments.values())
        ways = shardings(op, arguments)
        assert len(ways) == 3  # replicated, by channels, and by images or matrices
        for outputs, inputs in ways:
            cut = [
                [a] * PROCESSES if p is None or p.is_replicate() else a.chunk(PROCESSES, p.dim)
                for a, p in zip(arguments.values(), inputs, strict=True)
            ]
            shards = [op(*values) for values in zip(*cut, strict=True)]
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(joined(shards, outputs[0]), expected)
                continue
            for i, placement in enumerate(outputs):
                torch.testing.assert_close(joined([s[i] for s in shards], placement), expected[i])

    def test_many_matrices_stay_with_their_images(self):
        """Two shards of three images are 2 + 1, while those of their six matrices would be 3 + 3."""
        op = torch.ops.stn_triton.affine_grid_sample.default
        variant = variants.Variant(2, "bilinear", "zeros", "many", False)
        case = variants.case(variant)
        case = case._replace(input=torch.rand(3, 3, 4, 4), theta=case.theta[:1].expand(6, 2, 3))
        ways = shardings(op, call(op, case, variant.options()))
        assert [outputs for outputs, _ in ways] == [[REPLICATED], [CHANNELS]]

    def test_a_gradient_that_is_not_wanted_is_no_sum(self):
        op = torch.ops.stn_triton.affine_grid_sample_backward.default
        variant = variants.Variant(2, "bilinear", "zeros", "plain", False)
        arguments = call(op, variants.case(variant), variant.options(), (False, True, False))
        assert [outputs for outputs, _ in shardings(op, arguments)] == [
            [REPLICATED, theta, REPLICATED] for theta in (REPLICATED, Partial(), Shard(0))
        ]


class TestRegistration:
    @pytest.mark.full
    @pytest.mark.parametrize("first", ["stn_triton", "torch.distributed.tensor"])
    def test_the_first_call_registers_the_rules(self, first):
        """A call that bypasses the public functions and autograd registers them too."""
        script = f"""
import sys, {first}, stn_triton, torch
assert ("torch.distributed.tensor" in sys.modules) == ({first!r} == "torch.distributed.tensor")
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
with torch.inference_mode():
    images, theta = (distribute_tensor(torch.rand(s), mesh, [Shard(0)]) for s in ((2, 1, 4, 4), (2, 2, 3)))
    for size in ([5, 5], [3, 2]):
        options = (size, "bilinear", "zeros", False, False, [])
        output = torch.ops.stn_triton.affine_grid_sample(images, theta, None, None, *options)
        assert output.placements == (Shard(0),) and list(output.shape[2:]) == size
torch.distributed.destroy_process_group()
"""
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr

    def test_a_pytorch_that_differs_costs_only_the_rules(self, monkeypatch):
        monkeypatch.delattr(DTensor._op_dispatcher.sharding_propagator, "op_to_schema_info")
        with pytest.warns(UserWarning, match="no sharding rules"):
            sharding.register()


@pytest.fixture(scope="module", params=["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def failures(request, tmp_path_factory):
    """Start the processes, and return the failures of each, by check."""
    if request.param == "nccl" and torch.cuda.device_count() < PROCESSES:
        pytest.skip(f"needs {PROCESSES} GPUs")
    folder = tmp_path_factory.mktemp(request.param)
    torch.multiprocessing.spawn(work, (request.param, folder), nprocs=PROCESSES)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.full
def test_two_processes(failures, name):
    for rank, failed in enumerate(failures):
        assert failed[name] is None, f"process {rank}: {failed[name]}"
