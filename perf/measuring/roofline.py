"""The floor: the bytes that a pass must move, and how fast the device moves bytes.

Each of the following once, in its dtype; theta is too small to count.

    forward            unique input pixels touched + output
    backward           grad_output + unique input pixels touched + grad_input
    forward+backward   the sum of both: five passes over memory where input and output are alike
    theta              grad_output + unique input pixels touched
    input              grad_output + grad_input

grad_input counts whole, since pixels that nothing touched must be written too. An image that several matrices
share counts once. Bytes over time, as a share of what a copy of the device's
memory moves in that time, is the fraction of the roofline.
"""

from __future__ import annotations

import torch

from perf.measuring import measure
from perf.measuring.providers import eager_stacked
from perf.measuring.workloads import Data

_COPY_BYTES = {"cuda": 2**29, "cpu": 2**27}
_EFFORT = measure.Effort(cpu_seconds=0.5, cpu_rounds=5, gpu_rounds=5, gpu_ms_per_round=20, most_copies=1)


def touched_pixels(data: Data) -> int:
    """How many pixels, of the planes of all images, have a part in the output.

    Those to which something flows back through the eager pair, from one channel in fp64. What flows is
    positive and random: weights of bicubic sampling are negative too, and a pixel's must not cancel.
    """
    generator = torch.Generator().manual_seed(0)
    shape = list(data.grad_output.shape)
    shape[1 - data.input.ndim] = 1
    with torch.enable_grad():
        plane = torch.ones_like(data.input[:, :1], dtype=torch.float64, requires_grad=True)
        output = eager_stacked(plane, data.theta.double(), data.size, **data.options)
        flow = 1 + torch.rand(shape, generator=generator, dtype=torch.float64).to(plane.device)
        (weight,) = torch.autograd.grad(output, plane, flow)
    return int(weight.count_nonzero())


def touched_bytes(data: Data) -> int:
    """Of the input: what a forward pass reads at least."""
    return touched_pixels(data) * data.input.shape[1] * data.input.element_size()


def model_bytes(data: Data, touched: int) -> dict[str, int]:
    """What each pass moves at least, of input ``touched`` bytes."""
    input, output = data.input.nbytes, data.grad_output.numel() * data.input.element_size()
    model = {
        "forward": touched + output,
        "backward": output + touched + input,
        "theta": output + touched,
        "input": output + input,
    }
    return model | {"forward+backward": model["forward"] + model["backward"]}


def copy_gb_per_s(device: torch.device) -> float:
    """What a large copy on the device reads and writes, in 1e9 bytes per second; the median of several."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    _, median, _ = measure.quantiles(measure.sample({"copy": [copy]}, device, _EFFORT)["copy"])
    return 2 * source.nbytes / median / 1e6
