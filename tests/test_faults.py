"""State of the library after a failure of memory or of a process, after a signal, or after a fork.

Interrupted runs of ``perf tune`` are in test_tune.py, threads in test_citizen.py.
"""

import contextlib
import os
import signal
import threading

import pytest
import torch
from sparse import SomePrograms
from torch.utils._python_dispatch import TorchDispatchMode

from stn_triton import (
    affine_grid_sample,
    launch,
    ops,
    reference,
    reference_tangent,
    splines,
    thin_plate_spline_grid_sample,
)
from stn_triton.kernel_specs import SPECS
from stn_triton.kernels import scatter

pytestmark = pytest.mark.full
IMPLEMENTATIONS = {
    "kernels": ops._implementations(lambda: launch, lambda: launch),
    "plain PyTorch": ops._implementations(lambda: reference, lambda: reference_tangent),
}
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's processes must not fork")


class Allocations(TorchDispatchMode):
    """Counts allocations of tensors, and raises out of memory after ``last`` of them."""

    def __init__(self, last):
        super().__init__()
        self.last, self.count = last, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema = func._schema
        is_empty = func is torch.ops.aten.new_empty.default and args[1] == [
            0
        ]  # the interpreter's, of arguments
        if not (schema.is_mutable or is_empty) and any(r.alias_info is None for r in schema.returns):
            self.count += 1
            if self.count > self.last:
                raise torch.OutOfMemoryError(f"no memory for {func}")
        return func(*args, **(kwargs or {}))


class Scarce(TorchDispatchMode):
    """Runs an implementation of the operators with memory for ``last`` tensors."""

    def __init__(self, path, last):
        super().__init__()
        self.implementations = ops.operators(IMPLEMENTATIONS[path])
        self.memory = Allocations(last)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in self.implementations:
            return func(*args, **(kwargs or {}))
        with self.memory:
            return self.implementations[func](*args)


def affine(images, theta, **options):
    return affine_grid_sample(images, theta, 3, **options)


def with_fill(images, theta, fill):
    index = torch.tensor([1, 0])
    return affine_grid_sample(images, theta, 3, padding_mode="fill", fill_value=fill, image_index=index)


def penalty(images, theta):
    (grad,) = torch.autograd.grad(affine(images, theta).square().sum(), images, create_graph=True)
    return grad


def spline(images, offsets):
    splines._solution.cache_clear()
    return thin_plate_spline_grid_sample(images, offsets, 3)


def leaves(function):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(2, 1, 4, 4, generator=generator)]
    if function is spline:
        tensors.append(0.2 * torch.rand(2, 4, 2, generator=generator))
    else:
        tensors.append(torch.eye(2, 3) + 0.2 * torch.rand(2, 2, 3, generator=generator))
    if function is with_fill:
        tensors.append(torch.rand(1, generator=generator))
    return [t.requires_grad_() for t in tensors]


def step(path, function, tensors, last=10**6):
    """Run forward and backward, and return the number of tensors allocated."""
    with Scarce(path, last) as mode:
        function(*tensors).square().sum().backward()
    return mode.memory.count


@on_a_cpu
class TestMemory:
    @pytest.mark.parametrize("path", IMPLEMENTATIONS)
    @pytest.mark.parametrize("function", [affine, with_fill, penalty, spline], ids=lambda f: f.__name__)
    def test_a_call_without_enough_leaves_nothing_behind(self, function, path, monkeypatch):
        """Fail each allocation of forward and backward in turn, with and without an earlier ``.grad``."""
        tensors = leaves(function)
        step(path, function, tensors)
        expected = [t.grad for t in tensors]
        with monkeypatch.context() as patch:
            kernels = {(spec.module, spec.kernel_name) for spec in SPECS.values()}
            for module, name in kernels | {(scatter, "settle_kernel")}:
                # Kernels need not run, because results are not compared.
                patch.setattr(module, name, SomePrograms(getattr(module, name), lambda programs: ()))
            launch.plans.forget()
            count = step(path, function, [t.detach().requires_grad_() for t in tensors])
            for last in range(count):
                before = [None if (i + last) % 2 else torch.rand_like(t) for i, t in enumerate(tensors)]
                for t, grad in zip(tensors, before, strict=True):
                    t.grad = None if grad is None else grad.clone()
                with pytest.raises(torch.OutOfMemoryError, match="no memory for"):
                    step(path, function, tensors, last)
                for t, grad in zip(tensors, before, strict=True):
                    assert (t.grad is None) == (grad is None)
                    assert grad is None or torch.equal(t.grad, grad)
        launch.plans.forget()
        assert count >= 3
        for t in tensors:
            t.grad = None
        step(path, function, tensors)
        assert all(torch.equal(t.grad, grad) for t, grad in zip(tensors, expected, strict=True))


class Warped(torch.utils.data.Dataset):
    """Images warped in the loader, as an augmentation, with gradients or without."""

    def __init__(self, with_gradients):
        self.with_gradients = with_gradients

    def __len__(self):
        return 6

    def __getitem__(self, item):
        generator = torch.Generator().manual_seed(item)
        # Large enough for PyTorch to use several threads, where it may.
        image = torch.rand(1, 3, 128, 160, generator=generator).requires_grad_(self.with_gradients)
        theta = torch.eye(2, 3)[None] + 0.1 * torch.rand(1, 2, 3, generator=generator)
        output = affine_grid_sample(image, theta, 100)
        bent = thin_plate_spline_grid_sample(image, torch.zeros(1, 16, 2), 20)
        if not self.with_gradients:
            return output[0], bent[0]
        (grad,) = torch.autograd.grad(output.sum() + bent.sum(), image)
        return output.detach()[0], grad[0]


@on_a_cpu
class TestWorkers:
    @pytest.mark.parametrize(
        ("start", "workers", "with_gradients"),
        [("fork", 2, False), ("fork", 2, True), ("spawn", 1, True), ("forkserver", 1, False)],
    )
    def test_a_data_loader_gives_what_the_process_itself_does(self, start, workers, with_gradients):
        dataset = Warped(with_gradients)
        expected = [dataset[i] for i in range(len(dataset))]  # first fills caches, starts threads
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=2, num_workers=workers, multiprocessing_context=start, timeout=120
        )
        found = [torch.cat(parts) for parts in zip(*loader, strict=True)]
        for actual, parts in zip(found, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(actual, torch.stack(parts), rtol=1e-6, atol=1e-6)

    def test_an_interrupt_stops_a_call_and_the_next_one_works(self):
        """An interrupt may arrive between the steps of an operator."""
        dataset = Warped(True)
        expected = dataset[0]
        stop = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with contextlib.suppress(KeyboardInterrupt):
            stop.start()
            while True:
                dataset[0]
        for actual, wanted in zip(dataset[0], expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
