"""Checks run by two processes together: DTensor, DistributedDataParallel and ``fully_shard``.

Starting processes takes long, so the same two run all of ``CHECKS`` and write failures to a file each.
"""

import copy
import datetime
import json
import traceback
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DeviceMesh,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from stn_triton import SpatialTransformer, affine_grid_sample, perspective_grid_sample
from stn_triton.nn import SpatialTransformerSeries

PROCESSES = 2
REPLICATED, CHANNELS, BATCH = Replicate(), Shard(1), Shard(0)


class World(NamedTuple):
    rank: int
    device: str
    mesh: DeviceMesh

    def tensors(self, n=4, c=3, theta=None, **others):
        """Make named random tensors, equal in all processes."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(*(theta or (n, 2, 3)), generator=generator, dtype=torch.float64)
        tensors = {
            "input": torch.rand(n, c, 6, 7, generator=generator, dtype=torch.float64),
            "theta": noise + torch.eye(*noise.shape[-2:]),
            **others,
        }
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def results(self, tensors, function=affine_grid_sample, **options):
        leaves = {k: t.detach().requires_grad_(t.is_floating_point()) for k, t in tensors.items()}
        output = function(**leaves, **options)
        output.square().sum().backward()
        return {"output": output.detach(), **{k: t.grad for k, t in leaves.items() if t.requires_grad}}

    def check(self, tensors, placements, expected, gathers=False, **options):
        """Check that DTensors give the results of whole tensors, in the expected placements, output first."""
        sharded = {
            name: distribute_tensor(tensor, self.mesh, [placement])
            for (name, tensor), placement in zip(tensors.items(), placements, strict=True)
        }
        with CommDebugMode() as communication:
            actual = self.results(sharded, **options)
        assert (communication.get_total_counts() > 0) == gathers, communication.get_comm_counts()
        for name, truth in self.results(tensors, **options).items():
            torch.testing.assert_close(actual[name].full_tensor(), truth, msg=lambda m, n=name: f"{n}: {m}")
        assert [t.placements for t in actual.values()] == [(placement,) for placement in expected]


def data_parallel(world):
    class Warp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.localise = torch.nn.Linear(3 * 6 * 7, 6, dtype=torch.float64)

        def forward(self, images):
            theta = self.localise(images.flatten(1)).view(-1, 2, 3)
            return affine_grid_sample(images, theta, 5)

    torch.manual_seed(0)
    alone = Warp().to(world.device)
    parallel = DistributedDataParallel(copy.deepcopy(alone))
    images = world.tensors()["input"]
    alone(images).square().mean().backward()
    parallel(images.chunk(PROCESSES)[world.rank]).square().mean().backward()
    for ours, theirs in zip(parallel.module.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def batch(world):
    for size in (5, (7, 4)):  # a rule cached for one size must not serve the other
        world.check(world.tensors(), [BATCH, BATCH], [BATCH] * 3, size=size)
    world.check(world.tensors(), [BATCH, REPLICATED], [BATCH] * 3)
    world.check(world.tensors(n=3), [BATCH, BATCH], [BATCH] * 3)
    world.check(world.tensors(theta=(1, 2, 3)), [BATCH, REPLICATED], [BATCH, BATCH, Partial()])
    world.check(world.tensors(theta=(4, 3, 3)), [BATCH, BATCH], [BATCH] * 3, function=perspective_grid_sample)


def channels(world):
    world.check(world.tensors(), [CHANNELS, REPLICATED], [CHANNELS, CHANNELS, Partial()])
    world.check(world.tensors(), [CHANNELS, REPLICATED], [CHANNELS, CHANNELS, Partial()], mode="bicubic")


def fill_values(world):
    fill = torch.rand(3, dtype=torch.float64)
    options = {"padding_mode": "fill", "size": 5}
    tensors = world.tensors(fill_value=fill)
    world.check(tensors, [BATCH, BATCH, REPLICATED], [BATCH, BATCH, BATCH, Partial()], **options)
    expected = [CHANNELS, CHANNELS, Partial(), Shard(0)]
    world.check(tensors, [CHANNELS, REPLICATED, Shard(0)], expected, **options)
    for numbers in (0.5, [0.1, 0.2, 0.3]):
        world.check(world.tensors(), [BATCH, BATCH], [BATCH] * 3, fill_value=numbers, **options)


def many_matrices(world):
    world.check(world.tensors(theta=(4, 3, 2, 3)), [BATCH, BATCH], [BATCH] * 3)
    uneven = world.tensors(n=3, theta=(3, 2, 2, 3))
    world.check(uneven, [BATCH, REPLICATED], [REPLICATED] * 3, gathers=True)
    with pytest.raises(RuntimeError, match="unevenly sharded"):  # raised by PyTorch
        world.check(uneven, [BATCH, BATCH], [])


def image_index(world):
    tensors = world.tensors(theta=(5, 2, 3), image_index=torch.tensor([3, 0, 0, 2, 3]))
    world.check(tensors, [REPLICATED, BATCH, BATCH], [BATCH, Partial(), BATCH])
    world.check(tensors, [CHANNELS, REPLICATED, REPLICATED], [CHANNELS, CHANNELS, Partial()])
    world.check(tensors, [BATCH, REPLICATED, REPLICATED], [REPLICATED] * 3, gathers=True)


def rows_and_columns(world):
    for axis in (2, 3):
        world.check(world.tensors(), [Shard(axis), REPLICATED], [REPLICATED] * 3, gathers=True)


def plain_tensors(world):
    input, theta = world.tensors().values()
    with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
        affine_grid_sample(distribute_tensor(input, world.mesh, [BATCH]), theta)


def compiled(world):
    function = torch.compile(affine_grid_sample, backend="aot_eager", fullgraph=True, dynamic=False)
    for placements in ([BATCH, BATCH], [CHANNELS, REPLICATED]):
        sharded = {
            name: distribute_tensor(tensor, world.mesh, [placement])
            for (name, tensor), placement in zip(world.tensors().items(), placements, strict=True)
        }
        actual = world.results(sharded, function=function)
        for name, expected in world.results(sharded).items():
            assert actual[name].placements == expected.placements
            torch.testing.assert_close(actual[name].to_local(), expected.to_local())


def fully_sharded_stages(world):
    def stage(**options):
        layer = SpatialTransformer(3, **options)
        torch.nn.init.normal_(layer.head.weight, std=0.1)
        return layer

    torch.manual_seed(0)
    stages = [stage(transform="similarity"), stage(transform="attention", bounded=True, size=5)]
    alone = SpatialTransformerSeries(*stages, return_theta=True).double().to(world.device)
    sharded = copy.deepcopy(alone)
    for layer in sharded.stages:
        fully_shard(layer, mesh=world.mesh)
    assert list(sharded.state_dict()) == list(alone.state_dict())
    images = world.tensors()["input"]
    for series, x in ((alone, images), (sharded, images.chunk(PROCESSES)[world.rank])):
        output, theta = series(x)
        (output.square().mean() + theta.square().mean()).backward()
    for ours, theirs in zip(sharded.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)


CHECKS = {
    check.__name__: check
    for check in (
        data_parallel,
        batch,
        channels,
        fill_values,
        many_matrices,
        image_index,
        rows_and_columns,
        plain_tensors,
        compiled,
        fully_sharded_stages,
    )
}


def work(rank, backend, folder):
    torch.set_num_threads(1)
    device = "cpu" if backend == "gloo" else f"cuda:{rank}"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    timeout = datetime.timedelta(seconds=60)
    store = f"file://{folder}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=PROCESSES, timeout=timeout)
    world = World(rank, device, init_device_mesh(device.split(":")[0], (PROCESSES,)))
    failures = dict.fromkeys(CHECKS, "not run: a check before it failed")
    for name, check in CHECKS.items():
        try:
            check(world)
        except Exception:
            failures[name] = traceback.format_exc()
            break  # the processes may be in different checks now
        failures[name] = None
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
