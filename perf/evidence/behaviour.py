"""What only a GPU can show of each kind of call: repetition, graphs, streams, no waiting, no gaps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch
from torch import Tensor

import stn_triton
from perf.evidence.crew import SpoiltError
from perf.evidence.stage import Record, Stage
from perf.measuring.suite import one_line
from stn_triton.check.engine import deterministic

REPETITIONS = 20
BATCH_AND_SIDE = 100
"""The most that a call may have of each: no call has more, so none is cut."""
REHEARSED_SIDE = 2
Call = Callable[[], Sequence[Tensor]]
MakeCall = Callable[[torch.device, int], Call]
"""Of a device, and of the largest batch and side of an image."""


def _call(
    shape: Sequence[int] = (3, 5, 21, 18),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    crops: int = 0,
    **options: object,
) -> MakeCall:
    """A forward with both gradients, on random data; ``crops`` matrices for each image."""

    def make(device: torch.device, most: int) -> Call:
        generator = torch.Generator().manual_seed(0)
        dim, n = len(shape) - 2, min(shape[0], most)
        c, *size = shape[1], *(min(side, most) for side in shape[2:])
        input = torch.randn(n, c, *size, generator=generator)
        eye = torch.eye(dim, dim + 1)
        theta = eye + 0.15 * torch.randn(n, *[crops] * bool(crops), dim, dim + 1, generator=generator)
        output_size = tuple(side + 3 for side in size)
        grad = torch.randn(*theta.shape[:-2], c, *output_size, generator=generator)
        form = torch.channels_last if channels_last else torch.contiguous_format
        input = input.to(device, dtype, memory_format=form).requires_grad_()
        theta = theta.to(device).requires_grad_()
        grad = grad.to(device, dtype)

        def call() -> Sequence[Tensor]:
            output = stn_triton.affine_grid_sample(input, theta, output_size, **options)
            return output.detach(), *torch.autograd.grad(output, (input, theta), grad)

        return call

    return make


def _spline(device: torch.device, most: int) -> Call:
    generator = torch.Generator().manual_seed(0)
    size, size_in = ([min(side, most) for side in sides] for sides in ((17, 19), (20, 24)))
    input = torch.randn(2, 4, *size_in, generator=generator).to(device).requires_grad_()
    offsets = (0.1 * torch.randn(2, 9, 2, generator=generator)).to(device).requires_grad_()
    grad = torch.randn(2, 4, *size, generator=generator).to(device)

    def call() -> Sequence[Tensor]:
        output = stn_triton.thin_plate_spline_grid_sample(input, offsets, size=size)
        return output.detach(), *torch.autograd.grad(output, (input, offsets), grad)

    return call


def _tangent(device: torch.device, most: int) -> Call:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, min(15, most), min(17, most))
    tensors = [torch.randn(shape, generator=generator), torch.randn(2, 2, 3, generator=generator)]
    primals = tuple(t.to(device) for t in tensors)
    tangents = tuple(t.flip(0) for t in primals)
    return lambda: torch.func.jvp(lambda x, t: stn_triton.affine_grid_sample(x, t), primals, tangents)


ATOMIC = ("volume", "spline")
"""The calls whose sums have no fixed order, unless PyTorch is asked for deterministic algorithms."""
CALLS: dict[str, MakeCall] = {
    "plain": _call(),
    "channels_last bf16": _call((3, 32, 21, 18), torch.bfloat16, channels_last=True),
    "64 channels": _call((2, 64, 20, 20)),
    "fp16": _call(dtype=torch.float16),
    "volume": _call((2, 2, 7, 9, 8)),
    "crops": _call(crops=7),
    "border": _call(padding_mode="border"),
    "fill values": _call(padding_mode="fill", fill_value=[0.1, 0.2, 0.3, 0.4, 0.5]),
    "bicubic": _call(mode="bicubic"),
    "antialias": _call(antialias=True),
    "tangent": _tangent,
    "spline": _spline,
}


def run(item: str, stage: Stage) -> Iterator[Record]:
    """Each property of one kind of call; the graph last, for a failed capture may spoil what follows."""
    with stage.kernels(), _pretended_gpu() if stage.rehearse else contextlib.nullcontext():
        call = CALLS[item](stage.device, REHEARSED_SIDE if stage.rehearse else BATCH_AND_SIDE)
        ordered = deterministic() if item in ATOMIC else contextlib.nullcontext()
        with ordered:
            fixed = call()
            times = 1 if stage.rehearse else REPETITIONS
            yield _record(item, "repeated", fixed, *(call() for _ in range(times)))
            with deterministic():  # memory is NaN before it is written
                yield _record(item, "nothing unwritten", fixed, call())
            yield _record(item, "on a stream", fixed, _on_a_stream(call))
        yield _waits(item, call)
        yield _in_a_graph(item, call)


def _record(item: str, what: str, expected: Sequence[Tensor], *others: Sequence[Tensor]) -> Record:
    """Whether results are the same bits each time, and none is NaN."""
    for i, other in enumerate(others):
        for k, (e, o) in enumerate(zip(expected, other, strict=True)):
            if not torch.equal(e, o):  # so that a NaN is wrong
                return {
                    "ok": False,
                    "what": f"{item}: {what}",
                    "problem": f"result {k} differs in call {i + 2}",
                }
    return {"ok": True, "what": f"{item}: {what}"}


def _on_a_stream(call: Call) -> Sequence[Tensor]:
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        results = call()
    current.wait_stream(stream)
    return results


def _waits(item: str, call: Call) -> Record:
    """Whether the host waits for the GPU anywhere in a call."""
    what = f"{item}: no waiting"
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return {"ok": False, "what": what, "problem": str(error).splitlines()[0]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"ok": True, "what": what}


def _in_a_graph(item: str, call: Call) -> Record:
    expected = call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = call()
    except Exception as error:  # after which PyTorch's allocator may believe that the capture goes on
        raise SpoiltError(f"in a CUDA graph: {one_line(error.__context__ or error)}") from error
    graph.replay()
    torch.cuda.synchronize()
    if item in ATOMIC:
        close = all(
            torch.allclose(e, r, rtol=1e-4, atol=1e-4) for e, r in zip(expected, results, strict=True)
        )
        return {"ok": close, "what": f"{item}: in a CUDA graph", "problem": "" if close else "results differ"}
    return _record(item, "in a CUDA graph", expected, results)


@contextlib.contextmanager
def _pretended_gpu() -> Iterator[None]:
    """Stand-ins for what a CPU has no streams and graphs for: they do nothing, but must be called rightly."""
    stream = mock.create_autospec(torch.cuda.Stream, instance=True)
    graph = mock.create_autospec(torch.cuda.CUDAGraph, instance=True)
    with (
        mock.patch.object(torch.cuda, "current_stream", return_value=stream),
        mock.patch.object(torch.cuda, "Stream", return_value=stream),
        mock.patch.object(torch.cuda, "stream", lambda s: contextlib.nullcontext(s)),
        mock.patch.object(torch.cuda, "CUDAGraph", return_value=graph),
        mock.patch.object(torch.cuda, "graph", lambda g: contextlib.nullcontext(g)),
        mock.patch.object(torch.cuda, "set_sync_debug_mode"),
        mock.patch.object(torch.cuda, "synchronize"),
    ):
        yield
