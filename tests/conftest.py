"""Where the kernels run: on the GPU if there is one, else in Triton's interpreter on CPU tensors.

The interpreter is chosen before Triton is first imported, so this happens at import.
"""

import contextlib
import gc
import os
import random
import sys
import warnings

import pytest
import tiers
import torch

try:
    import hypothesis
except ModuleNotFoundError:  # the tests that need it import it themselves
    hypothesis = None

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("STN_TRITON_AUTOTUNE", None)


def _patch_once_per_launch():
    """Patch Triton's language once per launch, not for each call of a helper: halves the time of a test."""
    from triton.runtime import interpreter

    original, original_call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched = set()

    def patch_lang(fn):
        if id(fn.__globals__) in patched:
            return interpreter._LangPatchScope()
        patched.add(id(fn.__globals__))
        return original(fn)

    def call(self, *args, **kwargs):
        patched.clear()
        return original_call(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_lang, call


def _look_up_types_once():
    """Cache the types that the interpreter would otherwise look up for every value and every scalar."""
    import triton.language as tl
    from triton.runtime import interpreter

    of_numpy, with_element = interpreter._get_np_dtype, tl.block_type.with_element_ty
    dtypes, types = {}, {}

    def np_dtype(dtype):
        name = dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = of_numpy(dtype)
        return dtypes[name]

    def with_element_ty(self, scalar):
        key = self.shape, scalar.name
        if key not in types:
            types[key] = with_element(self, scalar)
        return types[key]

    interpreter._get_np_dtype, tl.block_type.with_element_ty = np_dtype, with_element_ty


def _make_room_on_the_stack():
    """Start each launch in a function of 20,000 variables, so that Python maps a large piece of stack once.

    Python maps another 16 kB for a call that does not fit, and unmaps them when the call returns. A kernel
    that begins at the end of a piece causes this in each operation: up to half the time of a test.
    """
    from triton.runtime import interpreter

    names: dict = {}
    variables = " = ".join(f"v{i}" for i in range(20_000))
    exec(f"def roomy(call, *args, **kwargs):\n    return call(*args, **kwargs)\n    {variables} = 0", names)
    original = interpreter.GridExecutor.__call__
    interpreter.GridExecutor.__call__ = lambda self, *args, **kwargs: names["roomy"](
        original, self, *args, **kwargs
    )


def _trace_no_kernels():
    """Switch coverage off within kernels: they are not measured, but tracing doubles the time of a test."""
    from triton.runtime import interpreter

    original = interpreter.GridExecutor.__call__

    def call(self, *args, **kwargs):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return original(self, *args, **kwargs)
        finally:
            sys.settrace(tracer)

    interpreter.GridExecutor.__call__ = call


if not HAS_GPU:
    from stn_triton import environment

    if environment.interpreter_problem():
        pytest.exit(f"no GPU, and no interpreter: {environment.interpreter_problem()}", returncode=4)
    # Internals of Triton: a version without them is only slower.
    with contextlib.suppress(ImportError, AttributeError):
        _patch_once_per_launch()
        _look_up_types_once()
        _make_room_on_the_stack()


# Examples of the 13 tests of kernels in sum; each test of plain PyTorch runs a thirteenth of them.
SHORT, ORDINARY, LONG, FUZZ_TESTS = 130, 520, 100_000, 13


def pytest_addoption(parser):
    group = parser.getgroup("fuzzing")
    what = f"kernels' examples in tests/test_fuzz.py, new ones each time; without it {SHORT}, always the same"
    group.addoption("--examples", type=int, metavar="N", help=what)
    group.addoption("--long", dest="examples", action="store_const", const=LONG, help=f"--examples {LONG}")


def pytest_configure(config):
    if not HAS_GPU and config.getoption("cov_source", None):
        with contextlib.suppress(ImportError, AttributeError):
            _trace_no_kernels()
    if hypothesis is not None:
        _register_fuzz_profiles(config.getoption("examples"))


def _register_fuzz_profiles(examples):
    """Make ordinary runs repeat the same examples; runs with ``--examples`` draw new ones."""
    if examples is None:
        # Hypothesis also tries constants of the loaded modules, which differ after every change.
        with contextlib.suppress(ImportError, AttributeError):
            from hypothesis.internal.conjecture import providers

            constants = providers.Constants()
            providers._get_local_constants = lambda: constants
    for profile, count in (("short", SHORT), ("fuzz", ORDINARY)):
        hypothesis.settings.register_profile(
            profile,
            max_examples=max((examples or count) // FUZZ_TESTS, 1),
            derandomize=examples is None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )


@pytest.hookimpl(tryfirst=True)  # before pytest leaves tests out by their markers
def pytest_collection_modifyitems(items):
    tiers.mark_full(items)
    if HAS_GPU:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch.cuda finds none"))


def _excluded():
    """The dispatch keys excluded in this thread, as bits."""
    return torch._C._dispatch_tls_local_exclude_set().raw_repr()


_AUTOGRAD = [
    getattr(torch._C.DispatchKey, name)
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor")
]
_AUTOGRAD_BITS = sum(torch._C.DispatchKeySet(key).raw_repr() for key in _AUTOGRAD)


@pytest.fixture(autouse=True)
def _gradients_stay_on(request):
    """Fail a test that leaves gradients off, because later tests would fail instead.

    In about one of ten long runs with PyTorch 2.14 or 2.15 the dispatcher excludes autograd after a test,
    even after a test that calls no operator of this package and compiles nothing. Since PyTorch 2.13 at the
    latest, a guard restores all keys that it found at its start. A guard that ends late therefore restores
    an old state: `test_dispatch.py::test_an_exception_dropped_late_leaves_autograd_on` shows it in PyTorch
    alone. The guard at fault is not known. The fixture switches autograd on again, and warns whether a
    garbage collection excluded it.
    """
    before, taken_by = 0, "no garbage collection"

    def compare(phase, info):
        nonlocal before, taken_by
        if phase == "start":
            before = _excluded()
        elif _excluded() & _AUTOGRAD_BITS & ~before:
            taken_by = f"a garbage collection of generation {info['generation']}"

    gc.callbacks.append(compare)
    yield
    gc.callbacks.remove(compare)
    was_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert was_on
    excluded = _excluded()
    if excluded & _AUTOGRAD_BITS:
        for key in _AUTOGRAD:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        message = f"{request.node.nodeid} left autograd out of the dispatcher; it was taken by {taken_by}"
        warnings.warn(f"{message}; keys {excluded:#x} were excluded", stacklevel=1)
        assert torch.__version__ >= (2, 14)


@pytest.fixture(autouse=True)
def _plans_of_this_test():
    """Forget launch plans after each test: they hold the kernels that the test put in place."""
    yield
    if "stn_triton.plans" in sys.modules:
        sys.modules["stn_triton.plans"].forget()


@pytest.fixture
def device():
    """Device for tests of the kernels: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture
def poisoned():
    """Fill new memory with NaN, so that elements that a kernel leaves unwritten show."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shuffled(monkeypatch):
    """Run the programs of a launch in random order, as a GPU may; the interpreter counts up from 0."""
    from triton.runtime import interpreter

    builder, chance, orders = interpreter.interpreter_builder, random.Random(0), [[]]
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def set_grid_dim(x, y, z):
        assert y == z == 1
        orders[-1] = chance.sample(range(x), x)
        orders.append([])
        set_dim(x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", set_grid_dim)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_idx(orders[-2][x], y, z))
    return orders
