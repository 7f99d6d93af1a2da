"""The code under test: kernels on a GPU, the plain PyTorch path on a CPU, or interpreted kernels."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from stn_triton import environment
from stn_triton.terminal import UsageError

KERNELS, REFERENCE, INTERPRETER = "GPU kernels", "plain PyTorch", "interpreted kernels"


class Engine(NamedTuple):
    """A device, and the code under test there."""

    device: torch.device
    name: str
    threads: int = 1
    """PyTorch's threads, as set by the user."""

    @property
    def has_kernels(self) -> bool:
        """Whether kernels run, which are checked bit for bit."""
        return self.name != REFERENCE

    def has_bfloat16(self) -> bool:
        """Whether the device computes with bfloat16 without emulating it."""
        if self.device.type != "cuda" or torch.version.hip:
            return True
        return torch.cuda.get_device_capability(self.device) >= (8, 0)

    def is_lost(self) -> bool:
        """Whether the GPU has stopped responding: after an illegal access all calls of this process fail."""
        if self.device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def truncates(self, dtype: torch.dtype) -> bool:
        """Whether rounding to a dtype is towards zero, as the interpreter rounds to bf16."""
        return self.name == INTERPRETER and dtype == torch.bfloat16

    def describe(self) -> str:
        """Describe the engine in a sentence or two."""
        if self.name == REFERENCE:
            return (
                "Checks the plain PyTorch path, with PyTorch's own sampler. Kernels run on a GPU, or with "
                "NumPy and --interpret on a CPU. Only kernels are checked bit for bit."
            )
        if self.name == INTERPRETER:
            return "Checks the kernels, in Triton's interpreter."
        name = torch.cuda.get_device_name(self.device)
        return f"Checks the kernels on {name}. The first run compiles them, which takes minutes."


def choose(device: str | None, interpret: bool) -> Engine:
    """Choose the engine by the arguments of the command line.

    Raises:
        UsageError: there is no such device or no interpreter, or kernels would be interpreted on a GPU.
    """
    if interpret and device is None:
        device = "cpu"
    chosen = environment.choose_device(device)
    if not interpret:
        if chosen.type == "cuda" and _is_interpreting():
            raise UsageError(
                f"TRITON_INTERPRET: expected it unset on a GPU (unset TRITON_INTERPRET), got "
                f"{os.environ['TRITON_INTERPRET']!r}: no kernel would be compiled, so a pass would mean "
                "nothing; to check in the interpreter, use --interpret"
            )
        return Engine(chosen, KERNELS if chosen.type == "cuda" else REFERENCE, torch.get_num_threads())
    if chosen.type != "cpu":
        raise UsageError(f"--interpret: expected --device cpu, got {device!r}")
    problem = environment.interpreter_problem()
    if problem:
        raise UsageError(f"--interpret: {problem}")
    return Engine(chosen, INTERPRETER)


def _is_interpreting() -> bool:
    """Whether TRITON_INTERPRET is on, as Triton reads it: "1", "true", "yes", "on" or "y"."""
    if "TRITON_INTERPRET" not in os.environ:
        return False
    from triton import knobs

    return knobs.runtime.interpret


@contextlib.contextmanager
def running(engine: Engine) -> Iterator[None]:
    """Make calls use the engine, in one thread, with default block sizes and no search.

    Most calls are too small to share, and waiting threads keep all cores busy.
    """
    before = {key: os.environ.get(key) for key in ("STN_TRITON_AUTOTUNE", "TRITON_INTERPRET")}
    os.environ["STN_TRITON_AUTOTUNE"] = "0"
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, before)
        stack.enter_context(threads(1))
        if engine.name == INTERPRETER:
            # Read when Triton is first imported, which `import stn_triton` does not do.
            os.environ["TRITON_INTERPRET"] = "1"
            stack.enter_context(_kernels_on_the_cpu())
        yield


def _restore(before: dict[str, str | None]) -> None:
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@contextlib.contextmanager
def _kernels_on_the_cpu() -> Iterator[None]:
    """Make the operators call the kernels for CPU tensors too."""
    from stn_triton import launch, ops

    before = ops.reference, ops.reference_tangent
    ops.reference, ops.reference_tangent = launch, launch
    try:
        with warnings.catch_warnings():
            # NumPy warns of NaN and infinity; a GPU computes them silently.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton.runtime.interpreter")
            yield
    finally:
        ops.reference, ops.reference_tangent = before


@contextlib.contextmanager
def _set(value: Any, read: Callable[[], Any], write: Callable[[Any], object]) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def threads(count: int) -> contextlib.AbstractContextManager[None]:
    """Set PyTorch's number of threads."""
    return _set(count, torch.get_num_threads, torch.set_num_threads)


def deterministic(is_on: bool = True) -> contextlib.AbstractContextManager[None]:
    """Set PyTorch's deterministic mode, which fills new memory with NaN to show unwritten elements."""
    return _set(is_on, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms)
