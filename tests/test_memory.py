"""Kernels read and write nothing but elements of their tensors, and write every element of an output.

On a GPU guard bands show stray writes, and two patterns of poison in the gaps show stray reads. In the
interpreter each address is also compared with those of the elements. For compiled kernels `tools/sanitize.py`
finds nearly as much: each tensor is an allocation without bands, whose ends memcheck knows, and initcheck
knows which elements have no value. Stray writes into gaps show only without `tools/sanitize.py`.
"""

import math

import memory
import pytest
import torch
import triton
import triton.language as tl
from memory import Layout, Storage, Watch
from variants import Variant, case, tangents_of

from stn_triton import launch, splines
from stn_triton.check import oracle
from stn_triton.options import MODES, PADDING_MODES

POINTS = tuple(splines.regular_points(2, 2))
DENSE = ("forward_kernel", "backward_kernel")
APART = (*DENSE, "scatter_kernel")
SCATTER = ("forward_kernel", "scatter_kernel")
EXACT = (*SCATTER, "settle_kernel")
CALLS = {  # call and kernels that it launches
    "plain": (Variant(2, "bilinear", "zeros", "plain", False), DENSE),
    "nearest": (Variant(2, "nearest", "border", "plain", True), DENSE),
    "bicubic fill": (Variant(2, "bicubic", "fill", "plain", False), (*APART, "fill_kernel")),
    "many": (Variant(2, "bilinear", "border", "many", True), APART),
    "index": (Variant(2, "bilinear", "fill", "index", False), (*APART, "fill_kernel")),
    "projective": (Variant(2, "bicubic", "border", "projective", False), EXACT),
    "antialias": (Variant(2, "bilinear", "border", "antialias", False), DENSE),
    "antialias index": (Variant(2, "nearest", "fill", "antialias index", True), (*DENSE, "fill_kernel")),
    "volume": (Variant(3, "bilinear", "fill", "plain", True), (*EXACT, "fill_kernel")),
    "volume reflection": (Variant(3, "nearest", "reflection", "many", False), EXACT),
    "volume antialias": (Variant(3, "bilinear", "zeros", "antialias", False), EXACT),
    "tangent": (Variant(2, "bilinear", "zeros", "plain", True), EXACT),
    "tangent fill": (Variant(2, "bicubic", "fill", "many", False), (*EXACT, "fill_kernel")),
    "tangent projective": (Variant(2, "bilinear", "border", "projective", False), EXACT),
    "tangent volume": (Variant(3, "bilinear", "reflection", "index", False), EXACT),
    "spline": (Variant(2, "bilinear", "zeros", "plain", False), EXACT),
    "spline many": (Variant(2, "bicubic", "reflection", "many", True), EXACT),
    "spline index": (Variant(2, "nearest", "border", "index", False), EXACT),
    "spline tangent": (Variant(2, "bilinear", "fill", "plain", False), (*EXACT, "fill_kernel")),
    "scatter": (Variant(2, "bicubic", "reflection", "index", False), SCATTER),
    "volume scatter": (Variant(3, "bilinear", "fill", "plain", False), (*SCATTER, "fill_kernel")),
    "spline scatter": (Variant(2, "bicubic", "zeros", "index", False), SCATTER),
    "spline scatter tangent": (Variant(2, "bilinear", "border", "many", True), SCATTER),
}
LAYOUTS = {
    "dense": lambda shape: Layout.of(shape),
    "every second": lambda shape: Layout.of(shape, step=2, gap=1, offset=1),
    "channels_last": lambda shape: Layout.of(shape, channels_last=True),
    "channels_last with gaps": lambda shape: Layout.of(shape, channels_last=True, gap=3),
    "transposed": lambda shape: Layout(
        tuple(reversed(range(len(shape)))), (1,) * len(shape), (2,) * len(shape)
    ),
    "expanded": lambda shape: Layout.of(shape)._replace(steps=(*(1,) * (len(shape) - 1), 0)),
}


SIZES = {2: ((3, 5), (4, 2)), 3: ((2, 3, 2), (1, 2, 3))}
# Interpreted kernels are slow: without a GPU each call has two of the layouts.
EVERY = [(name, layout) for name in CALLS for layout in LAYOUTS]
PAIRS = EVERY if torch.cuda.is_available() else [p for i, p in enumerate(EVERY) if (i + i // 6) % 3 == 0]


def arguments(name, channels=2, dtype=torch.float32, device="cpu"):
    """Return the tensors of a call, with tangents, the output size, and the options."""
    variant = CALLS[name][0]
    options = variant.options()
    args = case(variant, channels, *SIZES[variant.dim]).to(device, dtype)
    if "spline" in name:
        options = options._replace(points=POINTS)
        offsets = 0.3 * torch.randn(len(args.theta), 4, 2, generator=torch.Generator().manual_seed(5))
        args = args._replace(theta=splines.coefficients(offsets, POINTS, args.theta.dtype).to(device))
    tensors = {n: t for n, t in args._asdict().items() if isinstance(t, torch.Tensor)}
    if "tangent" in name:
        moved = tangents_of(args)._asdict()
        tensors |= {f"{n}_tangent": t for n, t in moved.items() if t is not None}
    return tensors, args.size, options


def run(tensors, size, options, mask=(True, True, True)):
    """Compute the output, or its tangent, and all gradients."""
    moved = None
    if "theta_tangent" in tensors:
        moved = launch.Tangents(*(tensors.get(f"{n}_tangent") for n in ("input", "theta", "fill")))
    here = [tensors.get(name) for name in ("input", "theta", "fill", "image_index")]
    output = launch.forward(*here, moved, size=size, options=options)
    mask = (*mask[:2], mask[2] and "fill" in tensors)
    return [output, *launch.backward(tensors["grad"], *here, moved, options=options, output_mask=mask)]


def watched(tensors, size, options, layout, pattern, mask=(True, True, True)):
    """Run a call on tensors in poisoned storage; return the results and the watch."""
    storage, watch = Storage(pattern), Watch()
    placed = {n: storage.place(t, layout(t.shape)) for n, t in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        if Watch.missing() is None:
            watch.start(patch)
        with storage:
            results = run(placed, size, options, mask)
    storage.check()
    return results, watch


@pytest.fixture
def order(request):
    """Switch deterministic algorithms off for scattering, which has no fixed order."""
    torch.use_deterministic_algorithms("scatter" not in request.node.callspec.params["name"])
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("name", "layout"), PAIRS)
@pytest.mark.sample(12)
def test_nothing_but_elements_is_touched(device, name, layout):
    """Results do not depend on the poison. On a CPU the watch sees reads, so that one pattern suffices."""
    tensors, size, options = arguments(name, device=device)
    expected = tensors
    if layout == "expanded":
        expected = {n: t[..., :1].expand_as(t) for n, t in tensors.items()}
    expected = run(expected, size, options)
    for pattern in (0, 1) if device.type == "cuda" else (0,):
        results, watch = watched(tensors, size, options, LAYOUTS[layout], pattern)
        for actual, plain in zip(results, expected, strict=True):
            if plain is not None:
                torch.testing.assert_close(actual, plain, rtol=1e-4, atol=1e-4)
        if Watch.missing() is None:
            assert set(watch.launches) == set(CALLS[name][1])
            assert watch.accesses > 100


HUGE = (2.0**31, -1e30, 3e38, math.nan, -math.inf)
MAPS = [
    (mode, padding_mode, name)
    for name in ("plain", "many", "projective", "spline", "spline scatter", "volume")
    for mode in MODES
    for padding_mode in PADDING_MODES
    if not (name == "volume" and mode == "bicubic")
]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("mode", "padding_mode", "name"), MAPS if torch.cuda.is_available() else MAPS[::5])
@pytest.mark.sample(5)
def test_coordinates_beyond_all_measure_stay_within_the_tensors(device, mode, padding_mode, name):
    """Checks that numbers fit into the integers they become, as 1e30 would not, and that results are right.

    Results are compared with the oracle, because zeros everywhere would be finite too.
    """
    kind = name if name in ("many", "projective") else "plain"
    variant = Variant(3 if name == "volume" else 2, mode, padding_mode, kind, mode == "nearest")
    args = case(variant, 1, *SIZES[variant.dim]).to(device, torch.float32)
    options = variant.options()
    if "spline" in name:
        # No pixel lies on a control point: a rounding there is multiplied by 3e38.
        options = options._replace(points=(-0.9, -0.8, 1.1, -0.7, -1.2, 0.6, 0.8, 1.3))
        args = args._replace(theta=torch.eye(2, 7, device=device).repeat(2, 1, 1))
    if kind != "many":
        args = args._replace(input=args.input[:1], theta=args.theta[:1], grad=args.grad[:1])
    entries = args.theta[0].numel()
    for i, number in enumerate(HUGE):
        theta = args.theta.clone()
        theta[0].view(-1)[(5 * i + 2) % entries] = number
        tensors = {n: t for n, t in args._asdict().items() if isinstance(t, torch.Tensor)} | {"theta": theta}
        results, _ = watched(tensors, args.size, options, LAYOUTS["every second"], 0)
        assert all(result.isfinite().all() for result in results if result is not None), number
        if options.padding.repeats and math.isfinite(number):
            # Positions this large do not determine the pixel: any pixel or mean of neighbours is right.
            output, largest = results[0].abs(), args.input.abs().max()
            assert (output > 0).any(), number
            assert (output <= 2 * largest).all(), number
            continue
        rest = args.grad, options, torch.float32, args.fill, args.image_index
        truth = oracle.solve(args.input, theta, args.size, *rest)
        for part, actual, expected in zip(truth._fields, results, truth, strict=True):
            # The oracle has no slope for a horizon at infinity under reflection.
            is_known = part != "grad_theta" or padding_mode != "reflection"
            if actual is not None and is_known:
                torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [-1, 3, 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("name", ["index", "antialias index", "spline index", "spline scatter"])
@pytest.mark.usefixtures("order")
@pytest.mark.sample(6)
def test_an_index_that_names_no_image_touches_none(device, name, number):
    tensors, size, options = arguments(name, channels=1, device=device)
    tensors["image_index"][1] = number
    results, _ = watched(tensors, size, options, LAYOUTS["every second"], 0)
    assert results[0][1].isnan().all()
    assert all(r.isfinite().all() for r in (results[0][0], *results[1:]) if r is not None)


@pytest.mark.parametrize("name", ["plain", "bicubic fill", "index", "volume"])
def test_bytes_do_not_depend_on_what_lies_between_them(device, name):
    tensors, size, options = arguments(name, device=device)
    tensors["input"] = (tensors["input"] * 60 + 128).clamp(0, 255).byte()
    results = []
    for pattern in (0, 1):
        storage, watch = Storage(pattern), Watch()
        placed = {n: storage.place(t, LAYOUTS["every second"](t.shape)) for n, t in tensors.items()}
        with pytest.MonkeyPatch.context() as patch, storage:
            if Watch.missing() is None:
                watch.start(patch)
            here = [placed.get(name) for name in ("input", "theta", "fill", "image_index")]
            results.append(launch.forward(*here, size=size, options=options))
        storage.check()
    assert torch.equal(*results)


@triton.jit
def _careless_kernel(
    output_ptr, input_ptr, size, READ: tl.constexpr, WRITE: tl.constexpr, TWICE: tl.constexpr
):
    """Copy the input, with elements too many or too few read or written, or written twice."""
    i = tl.arange(0, 16)
    values = tl.load(input_ptr + 2 * i, mask=i < size + READ, other=0)
    tl.store(output_ptr + i, values, mask=i < size + WRITE)
    tl.store(output_ptr + i, values, mask=i < TWICE)


@triton.jit
def _wrapping_kernel(output_ptr, input_ptr):
    tl.store(output_ptr, (tl.load(input_ptr) * 1e30).to(tl.int32).to(tl.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled")
def test_this_interpreter_can_be_watched():
    """If a new Triton renames a method, the tests above would silently use guard bands alone."""
    assert Watch.missing() is None


class TestWhatWatches:
    """Checks that `Watch` and `Storage` find faults; otherwise the tests above could not fail."""

    def launch(self, monkeypatch, kernel, storage=None, is_watched=True, **flags):
        storage = storage or Storage()
        input = storage.place(torch.ones(5), Layout((0,), (2,), (0,)))
        with storage:
            output = torch.empty(5)
        names = memory._WRITTEN | dict.fromkeys(("_careless_kernel", "_wrapping_kernel"), ("output_ptr",))
        monkeypatch.setattr(memory, "_WRITTEN", names)
        if is_watched:
            Watch().start(monkeypatch)
        kernel[(1,)](output, input, **flags)
        storage.check()

    @pytest.fixture(autouse=True)
    def interpreted(self):
        if Watch.missing():
            pytest.skip(Watch.missing())

    def test_a_careful_kernel_passes(self, monkeypatch):
        self.launch(monkeypatch, _careless_kernel, size=5, READ=0, WRITE=0, TWICE=0)

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"READ": 1, "WRITE": 0, "TWICE": 0}, "1 addresses read"),
            ({"READ": 0, "WRITE": 1, "TWICE": 0}, "1 addresses written"),
            ({"READ": 0, "WRITE": -1, "TWICE": 0}, "1 elements not written, 0 twice"),
            ({"READ": 0, "WRITE": 0, "TWICE": 1}, "0 elements not written, 1 twice"),
        ],
    )
    def test_a_careless_one_does_not(self, monkeypatch, flags, words):
        with pytest.raises(Exception, match=words):
            self.launch(monkeypatch, _careless_kernel, size=5, **flags)

    def test_a_number_that_wraps_is_seen(self, monkeypatch):
        with pytest.raises(Exception, match="does not fit into 32 bits"):
            self.launch(monkeypatch, _wrapping_kernel)

    @pytest.mark.parametrize(("write", "words"), [(1, "written outside"), (-1, "elements not written")])
    def test_guard_bands_find_faults_without_a_watch(self, monkeypatch, write, words):
        flags = {"READ": 0, "WRITE": write, "TWICE": 0}
        with pytest.raises(AssertionError, match=words):
            self.launch(monkeypatch, _careless_kernel, is_watched=False, size=5, **flags)

    def test_under_the_sanitizer_allocations_end_where_tensors_end(self, monkeypatch):
        """Bands and poison would hide stray accesses from the sanitizer, so that there are none."""
        monkeypatch.setattr(memory, "IS_SANITIZED", True)
        monkeypatch.setattr(torch, "empty", lambda *a, of=torch.empty, **k: of(*a, **k).fill_(77))
        storage = Storage()
        view = storage.place(torch.ones(2, 3), Layout.of((2, 3), step=2, gap=1, offset=1))
        (kept,) = storage.kept
        assert view.storage_offset() == 0
        assert view.untyped_storage().nbytes() == 4 * (
            1 + sum(s * (n - 1) for n, s in zip((2, 3), view.stride(), strict=True))
        )
        rest = torch.ones(len(kept.buffer), dtype=torch.bool)
        rest[memory._places(view)] = False
        assert rest.any()
        assert (kept.buffer[rest] == 77).all()
        assert (view == 1).all()
        with storage:
            output = torch.empty_like(view)
        assert output.untyped_storage().nbytes() == 24
        storage.check()
        view[0, 0] = 2
        with pytest.raises(AssertionError, match="only read"):
            storage.check()

    def test_a_write_to_what_is_read_is_seen(self):
        storage = Storage()
        storage.place(torch.ones(5), Layout((0,), (2,), (0,)))[3] = 2
        with pytest.raises(AssertionError, match="only read"):
            storage.check()
