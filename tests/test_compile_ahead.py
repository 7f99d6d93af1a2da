"""Search of block sizes: parallel compilation, time limits, and the winning configuration."""

import gc
import os
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import triton
import uninterpreted
from test_tuning import BUCKET, messages

from stn_triton import autotuner

CONFIGS = [{"BLOCK_C": 2**i} for i in range(6)]


@pytest.fixture
def clock(monkeypatch):
    """Return a function that sets the times of configurations and returns the list of those timed."""
    timed = []

    def set_times(times):
        def bench(launch, **options):
            config = launch.args[0]
            timed.append(CONFIGS.index(config))
            launch()
            return (times[CONFIGS.index(config)],) * 3

        monkeypatch.setattr(triton.testing, "do_bench", bench)
        return timed

    return set_times


class TestSearch:
    def test_times_each_and_takes_the_fastest(self, clock, caplog):
        timed, ran = clock([3.0, 2.0, 4.0, 1.0, 5.0, 2.0]), []
        assert autotuner.fastest_of(CONFIGS, ran.append, "it") == CONFIGS[3]
        assert timed == list(range(6))
        assert ran == CONFIGS
        assert messages(caplog) == []

    def test_one_that_does_not_run_loses(self, clock):
        clock([3.0, 2.0, 1.0, 4.0, 5.0, 2.5])

        def run(config):
            if config in CONFIGS[2:3]:
                raise RuntimeError("ptxas died")

        assert autotuner.fastest_of(CONFIGS, run, "it") == CONFIGS[1]
        assert autotuner.fastest_of(CONFIGS, lambda config: 1 / 0, "it") == CONFIGS[0]

    @pytest.mark.parametrize(
        ("times", "wins"),
        [
            ((0.96, 0.97, 0.98), True),
            ((0.985, 0.985, 0.985), False),  # 1.5 %
            ((0.8, 0.9, 1.0), False),  # its samples spread into the default's
            ((2.0, 2.0, 2.0), False),
        ],
    )
    def test_the_default_wins_ties_within_noise(self, times, wins):
        default, other, slow = CONFIGS[:3]
        timed = [(default, (0.99, 1.0, 1.01)), (slow, (3.0,) * 3), (other, times)]
        assert autotuner.fastest(default, timed) == (other if wins else default)
        assert autotuner.fastest(default, timed[1:]) == other  # without a time of the default
        assert autotuner.fastest(default, []) == default

    def test_an_interruption_ends_it(self, clock):
        clock([1.0] * 6)

        def run(config):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            autotuner.fastest_of(CONFIGS, run, "it")

    def test_a_long_one_is_logged_while_it_lasts(self, clock, monkeypatch, caplog):
        clock([1.0] * 6)
        monkeypatch.setattr(autotuner, "_SECONDS_UNSAID", 0.05)
        said = []

        def run(config):
            time.sleep(0.1)
            said.append(len(caplog.records))

        autotuner.fastest_of(CONFIGS, run, BUCKET.name())
        assert said[1:] == [1] * 5
        assert messages(caplog) == [
            f"stn_triton: searching for the fastest block sizes of {BUCKET.name()}, for at most about 30 s"
        ]


class Pretended:
    """Stand-in for Triton's mode of asynchronous compilation."""

    active = None

    def __init__(self, executor):
        self.executor = executor

    def __enter__(self):
        if Pretended.active is not None:
            raise RuntimeError("Another AsyncCompileMode is already active")
        Pretended.active = self
        return self

    def __exit__(self, *_):
        Pretended.active = None

    def submit(self, key, compile_fn, finalize_fn):
        finalize_fn(self.executor.submit(compile_fn).result())  # a launch waits for its kernel


class Kernel:
    """Stand-in for a launch: compiles each configuration once, for a given number of seconds."""

    def __init__(self, seconds):
        self.seconds, self.compiled, self.begun, self.launched, self.threads = seconds, {}, [], [], set()

    def compile(self, index):
        self.begun.append(index)
        self.threads.add(threading.get_ident())
        time.sleep(max(self.seconds[index], 0))
        if self.seconds[index] < 0:
            raise ValueError("does not compile")
        return index

    def __call__(self, config):
        index = CONFIGS.index(config)
        if index not in self.compiled:
            if Pretended.active is None:
                self.compiled[index] = self.compile(index)
            else:
                finish = lambda kernel: self.compiled.update({index: kernel})  # noqa: E731
                Pretended.active.submit(index, lambda: self.compile(index), finish)
        self.launched.append(index)


@pytest.fixture
def side(monkeypatch):
    """Let searches use `Pretended` in place of Triton's mode."""
    monkeypatch.setattr(triton, "AsyncCompileMode", Pretended, raising=False)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)


@pytest.mark.usefixtures("side")
class TestCompiling:
    def test_all_at_once_and_nothing_is_launched(self):
        kernel = Kernel([0.3] * 6)
        began = time.monotonic()
        assert autotuner.compile_ahead(CONFIGS, kernel, 30) == [None] * 6
        assert time.monotonic() - began < 1.2
        assert kernel.compiled == {i: i for i in range(6)}
        assert kernel.launched == []
        assert len(kernel.threads) == 6
        assert threading.get_ident() not in kernel.threads

    def test_a_search_takes_the_best_of_what_is_compiled_in_time(self, clock, monkeypatch):
        timed = clock([3.0, 2.0, 0.1, 2.5, 0.1, 0.1])
        monkeypatch.setattr(autotuner, "SECONDS", 0.3)
        seconds = [0.0, 0.0, 3.0, 0.0, -1, 3.0]
        began = time.monotonic()
        errors = autotuner.compile_ahead(CONFIGS, Kernel(seconds), 0.3)
        assert time.monotonic() - began < 2
        failed = [None, None, TimeoutError, None, ValueError, TimeoutError]
        assert [error and type(error) for error in errors] == failed
        kernel = Kernel(seconds)
        assert autotuner.fastest_of(CONFIGS, kernel, "it") == CONFIGS[1]
        assert timed == kernel.launched == [0, 1, 3]

    def test_without_any_in_time_the_first_is_waited_for(self, clock, monkeypatch):
        timed = clock([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        monkeypatch.setattr(autotuner, "SECONDS", 0.1)
        assert autotuner.fastest_of(CONFIGS, Kernel([3.0, 0.4, 3.0, 3.0, 3.0, 3.0]), "it") == CONFIGS[1]
        assert timed == [1]

    def test_on_one_core_the_default_comes_first(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        kernel = Kernel([0.1] * 6)
        errors = autotuner.compile_ahead(CONFIGS, kernel, 0.25)
        assert errors[0] is None
        assert isinstance(errors[5], TimeoutError)
        begun = list(kernel.begun)
        time.sleep(0.4)
        assert kernel.begun == begun == list(range(len(begun)))  # others never begin

    def test_one_that_is_compiled_already_is_launched(self):
        kernel = Kernel([0.0] * 6)
        kernel(CONFIGS[2])
        assert autotuner.compile_ahead(CONFIGS, kernel, 30) == [None] * 6
        assert kernel.launched == [2, 2]

    def test_a_failed_launch_leaves_no_reference_to_what_it_held(self):
        """A reference cycle through its frames would keep the tensors until Python collects it."""

        class Tensor:
            pass

        held = []

        def run(config):
            tensor = Tensor()
            held.append(weakref.ref(tensor))
            if config in CONFIGS[:3]:
                raise ValueError("no memory")
            Pretended.active.submit(config, lambda: 1, lambda kernel: None)

        gc.disable()
        try:
            errors = autotuner.compile_ahead(CONFIGS, run, 30)
            assert [reference() for reference in held] == [None] * 6
        finally:
            gc.enable()
        assert [str(error) for error in errors] == ["no memory"] * 3 + ["None"] * 3

    def test_in_a_mode_of_the_user_s_each_is_compiled_by_its_launch(self, clock):
        timed = clock([3.0, 2.0, 1.0, 2.0, 2.0, 2.0])
        with Pretended(ThreadPoolExecutor(2)) as mode:
            assert autotuner.fastest_of(CONFIGS, Kernel([0.0] * 6), "it") == CONFIGS[2]
            assert Pretended.active is mode
        assert timed == list(range(6))

    def test_without_a_mode_the_time_is_limited_too(self, clock, monkeypatch):
        monkeypatch.delattr(triton, "AsyncCompileMode")
        timed = clock([3.0, 2.0, 1.0, 0.5, 0.5, 0.5])
        for seconds, expected in ((0.0, [1]), (0.9, [1, 2])):
            monkeypatch.setattr(autotuner, "SECONDS", seconds)
            timed.clear()
            kernel = Kernel([-1, 0.5, 0.5, 0.5, 0.5, 0.5])
            assert autotuner.fastest_of(CONFIGS, kernel, "it") == CONFIGS[expected[-1]]
            assert timed == expected


@pytest.mark.full
def test_real_kernels_are_compiled_side_by_side_and_found_when_they_are_launched(tmp_path):
    """Compile with Triton for a GPU that this machine lacks, so that nothing can be launched."""
    code = """
    import threading
    import torch
    from perf.kernels import ahead
    from stn_triton import autotuner, tuning
    from triton import knobs

    hits, threads = [], set()

    def choose(bucket, run):
        configs = tuning.candidates(bucket, 3)
        errors = autotuner.compile_ahead([*configs, {**configs[0], "num_warps": 3}], run, 300)
        assert errors[:3] == [None] * 3 and errors[3] is not None, errors
        return configs[2]

    def listen(*, cache_hit, **_):
        hits.append(cache_hit)
        threads.add(threading.get_ident())

    def call():
        knobs.compilation.listener = listen
        arguments = torch.rand(2, 8, 16, 16), torch.eye(2, 3).repeat(2, 1, 1), None, None, (16, 16)
        torch.ops.stn_triton.affine_grid_sample(*arguments, "bilinear", "zeros", False, False, ())

    (made,) = ahead.compile_call(call, ("cuda", 90, 32), choose)
    assert made.kernel.asm["cubin"]
    assert hits == [False] * 3, hits  # the launch of the one that was chosen compiles nothing
    assert threading.get_ident() not in threads
    print("as it should be")
    """
    done = uninterpreted.python("-c", textwrap.dedent(code), TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout == "as it should be\n", done.stderr
