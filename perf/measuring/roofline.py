"""The floor: the bytes that a pass must move, and how fast the device moves bytes.

Each of the following once, in its dtype; theta is too small to count.

    forward            unique input pixels touched + output
    backward           grad_output where it reaches the input + unique input pixels touched + grad_input
    forward+backward   the sum of both: five passes over memory where input and output are alike
    theta              grad_output where it reaches the input + unique input pixels touched
    input              grad_output where it reaches the input + grad_input

Output and grad_input count whole: pixels outside and pixels that nothing touches must be written too. An
image that several matrices share counts once. Bytes over time, as a share of what a copy of the device's
memory moves in that time, is the fraction of the roofline.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from perf.measuring import stopwatch
from perf.measuring.providers import eager_stacked
from perf.measuring.workloads import Data

_COPY_BYTES = {"cuda": 2**29, "cpu": 2**27}
_EFFORT = stopwatch.Effort(cpu_seconds=0.5, cpu_rounds=5, gpu_rounds=5, gpu_ms_per_round=20, most_copies=1)


def counted_pixels(data: Data) -> tuple[int, int]:
    """How many pixels of all images have a part in the output, and how many of the output have one in them.

    Those to and from which something flows through the eager pair, of one channel in fp64. What flows is
    positive and random: weights of bicubic sampling are negative too, and a pixel's must not cancel.
    """
    generator = torch.Generator().manual_seed(0)

    def flow(shape: Sequence[int]) -> torch.Tensor:
        random = 1 + torch.rand(shape, generator=generator, dtype=torch.float64)
        return random.to(data.input.device)

    with torch.enable_grad():
        plane = flow(data.input[:, :1].shape).requires_grad_()
        output = eager_stacked(plane, data.theta.double(), data.size, **data.options)
        (weight,) = torch.autograd.grad(output, plane, flow(output.shape))
    return int(weight.count_nonzero()), int(output.count_nonzero())


def moved_bytes(data: Data) -> tuple[int, int]:
    """Of the input what a forward pass reads at least, and of grad_output what a backward pass does."""
    touched, reached = counted_pixels(data)
    channels = data.input.shape[1] * data.input.element_size()
    return touched * channels, reached * channels


def model_bytes(data: Data, touched: int, reached: int) -> dict[str, int]:
    """What each pass moves at least, of input ``touched`` bytes and of grad_output ``reached`` ones."""
    input, output = data.input.nbytes, data.grad_output.numel() * data.input.element_size()
    model = {
        "forward": touched + output,
        "backward": reached + touched + input,
        "theta": reached + touched,
        "input": reached + input,
    }
    return model | {"forward+backward": model["forward"] + model["backward"]}


def copy_gb_per_s(device: torch.device) -> float:
    """What a large copy on the device reads and writes, in 1e9 bytes per second; the median of several."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    _, median, _ = stopwatch.quantiles(stopwatch.sample({"copy": [copy]}, device, _EFFORT)["copy"])
    return 2 * source.nbytes / median / 1e6
