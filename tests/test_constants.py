"""Constants on a device: made once, usable from any context, and never made within a CUDA graph."""

import copy
import math
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stn_triton import affine_grid_sample, constants, splines, thin_plate_spline_grid_sample, transforms
from stn_triton.nn import outside_penalty

CPU, META = torch.device("cpu"), torch.device("meta")
POINTS = (-0.9, -0.7, 0.8, -0.6, 0.1, 0.2, -0.5, 0.9)
PAIRS = [POINTS[i : i + 2] for i in range(0, 8, 2)]


@pytest.fixture
def constant():
    """A cached function from numbers to a tensor, new for each test."""

    @constants.once_per_device("numbers")
    def numbers(numbers, device):
        return torch.tensor(numbers, dtype=torch.float64, device=device)

    return numbers


@pytest.fixture
def fresh(monkeypatch):
    """Clear the cache of constants of splines before and after a test."""
    forget = splines._solution.cache_clear
    forget()
    yield
    forget()


class FromNumbers(TorchFunctionMode):
    """Records the names of functions that are called to make a tensor of Python numbers."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("tensor", "as_tensor", "new_tensor"):
            self.names.append(func.__name__)
        if (getattr(func, "__module__", None) or "").startswith("stn_triton"):
            with self:  # a mode gets these as a whole
                return func.__wrapped__(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Seen(TorchDispatchMode):
    """Records the names of the functions called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def fill(device):
    image, theta = torch.empty(2, 3, 4, 4, device=device), torch.empty(2, 2, 3, device=device)
    return affine_grid_sample(image, theta, padding_mode="fill", fill_value=[0.125, 0.25, 0.375])


def coefficients(device):
    return splines.coefficients(torch.empty(2, 4, 2, device=device), POINTS, torch.float32)


def penalty(device):
    return outside_penalty(torch.empty(2, 4, 2, device=device), points=PAIRS)


def centres(device):
    return splines.centres(POINTS, device, torch.float32)


def pixels(device):
    matrix = torch.empty(2, 2, 3, device=device)  # for a homography other work would come before
    transforms.to_pixels(transforms.from_pixels(matrix, (5, 7), (4, 3)), (5, 7))
    numbers, pairs = matrix[:, 0, 0], matrix[:, 0, :2]
    given = {"angle": numbers, "scale": numbers, "translate": pairs, "shear": pairs, "center": pairs}
    return transforms.from_torchvision_affine((5, 7), **given)


class TestOnce:
    @pytest.mark.parametrize(
        "function", [fill, coefficients, penalty, centres, pixels], ids=lambda f: f.__name__
    )
    def test_a_second_call_makes_no_tensor_of_numbers(self, function, fresh, monkeypatch):
        threads = []

        class Counted(threading.Thread):
            def start(self):
                threads.append(self)
                return super().start()

        monkeypatch.setattr(constants, "Thread", Counted)
        with FromNumbers() as made:
            function(CPU)
        assert threads or made.names
        function(META)
        threads.clear()
        with FromNumbers() as made:
            function(META)
        assert not threads
        assert not made.names

    def test_the_same_tensor_for_the_same_bits(self, constant):
        assert constant([math.nan, 1], CPU) is constant((float("nan"), 1.0), CPU)
        zeros = [constant([zero], CPU) for zero in (0.0, -0.0)]
        assert [zero.signbit().item() for zero in zeros] == [False, True]

    def test_a_device_and_a_dtype_have_their_own(self, constant):
        assert [constant([1.0], device).device for device in (CPU, META)] == [CPU, META]
        dtypes = (torch.float32, torch.float64)
        assert [splines.centres(POINTS, META, dtype).dtype for dtype in dtypes] == list(dtypes)

    def test_those_used_last_are_kept(self, constant):
        first, second = constant([-1.0], CPU), constant([-2.0], CPU)
        for i in range(constants.MOST - 1):
            constant([float(i)], CPU)
            constant([-1.0], CPU)
        assert constant([-1.0], CPU) is first
        assert constant([-2.0], CPU) is not second

    def test_what_cannot_be_made_raises_each_time(self):
        offsets = torch.zeros(1, 4, 2)
        for _ in range(2):
            with pytest.raises(ValueError, match="not on one line"):
                splines.coefficients(offsets, (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.0), torch.float32)

    def test_threads_get_the_same_numbers(self, constant):
        found = []
        threads = [threading.Thread(target=lambda: found.append(constant([7.0], CPU))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [tensor.tolist() for tensor in found] == [[7.0]] * 8


class TestSurroundings:
    """A constant made within any mode, transform or program can be used outside of it."""

    def test_inference_mode(self, constant, fresh):
        with torch.inference_mode():
            made = constant([1.0], CPU)
            outside_penalty(torch.zeros(2, 4, 2), points=PAIRS)
        assert not made.is_inference()
        offsets = torch.full((2, 4, 2), 0.9, requires_grad=True)
        outside_penalty(offsets, points=PAIRS).sum().backward()
        assert offsets.grad.any()

    @pytest.mark.parametrize(
        "transform", [torch.vmap, torch.func.grad, torch.func.functionalize], ids=lambda f: f.__name__
    )
    def test_a_transform(self, constant, transform):
        made = []

        def function(x):
            made.append(constant([3.0], CPU))
            return (x * made[0]).sum()

        transform(function)(torch.ones(2, dtype=torch.float64))
        assert not torch._C._functorch.is_functorch_wrapped_tensor(made[0])
        assert made[0] is constant([3.0], CPU)
        assert made[0].tolist() == [3.0]

    def test_a_default_device(self, fresh):
        offsets = torch.rand(1, 4, 2)
        with torch.device("meta"):
            inside = splines.directions(offsets, POINTS, torch.float32)
        assert torch.equal(inside, splines.directions(offsets, POINTS, torch.float32))

    def test_a_mode(self, constant):
        with Seen() as mode:
            made = constant([1.0], CPU)
        assert mode.names == []
        assert made is constant([1.0], CPU)

    def test_tensors_without_data_get_one_of_their_own(self, constant):
        with FakeTensorMode() as mode:
            fake = constant([1.0], CPU) + mode.from_tensor(torch.ones(1))
        assert type(fake) is not torch.Tensor
        assert type(constant([1.0], CPU)) is torch.Tensor

    @pytest.mark.parametrize("is_there", [False, True])
    def test_programs_have_their_own(self, constant, is_there):
        x = torch.ones(2, dtype=torch.float64)
        function = lambda x: x * constant([2.0, 3.0], x.device)  # noqa: E731
        if is_there:
            made = constant([2.0, 3.0], CPU)
        traced = make_fx(function, tracing_mode="fake")(x)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        module = torch.nn.Module()
        module.forward = function
        exported = torch.export.export(module, (x,), strict=False).module()
        for program in (traced, compiled, copy.deepcopy(exported)):
            assert program(x).tolist() == [2.0, 3.0]
        if is_there:
            assert constant([2.0, 3.0], CPU) is made


class Stub:
    """Stand-in for a tensor on a GPU."""

    is_cuda, device = True, "a GPU"

    def __init__(self):
        self.streams = []

    def data_ptr(self):
        return id(self)

    def record_stream(self, stream):
        self.streams.append(stream)


class TestCapture:
    @pytest.fixture(autouse=True)
    def capturing(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
        monkeypatch.setattr(constants, "_captured", {})

    @pytest.mark.parametrize(
        ("function", "argument", "numbers"),
        [
            (fill, "fill_value", r"\[0.125, 0.25, 0.375\]"),
            (coefficients, "points", r"\[-0.9, -0.7, 0.8, "),
            (centres, "points", r"\[-0.9, -0.7, 0.8, "),
            (pixels, "size_in and size_out", r"\["),
        ],
        ids=["fill", "coefficients", "centres", "pixels"],
    )
    def test_new_numbers_are_refused_before_anything_is_done(self, function, argument, numbers, monkeypatch):
        """The tensors are on a GPU that does not exist, so that any work there would fail."""
        real_empty = torch.empty

        def empty(*shape, device):
            with FakeTensorMode():
                return real_empty(*shape, device=device)

        with Seen() as mode, monkeypatch.context() as patch:
            patch.setattr(torch, "empty", empty)
            message = f"numbers of {argument} must be on cuda:0 before .* got new ones, {numbers}"
            with pytest.raises(RuntimeError, match=message):
                function(torch.device("cuda", 0))
        assert set(mode.names) <= {"empty", "transpose", "prim::device"}, mode.names

    def test_a_call_on_a_cpu_is_none_of_its_business(self, fresh):
        thin_plate_spline_grid_sample(torch.rand(1, 1, 4, 4), torch.zeros(1, 4, 2), points=PAIRS)
        fill(CPU)

    def test_what_a_graph_reads_stays_for_good(self):
        tensor = Stub()
        assert constants._kept(tensor) is tensor
        assert list(constants._captured.values()) == [tensor]
        assert not tensor.streams

    def test_without_a_graph_its_memory_waits_for_the_stream_that_reads_it(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        tensor = Stub()
        assert constants._kept(tensor) is tensor
        assert not constants._captured
        assert tensor.streams == ["the stream of a GPU"]
