"""Searches that a call is asked for: when there is one, what it tries, and what it does with little time."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import triton
from test_tuning import BUCKET, CONFIG, GPU, OTHER, PLAIN, gpu, messages, write  # noqa: F401, a fixture

import stn_triton
from stn_triton import search, tuning

ROOT = Path(__file__).resolve().parents[1]
THREADS = 8
LARGE = tuning.bucket_of("forward", PLAIN, False, torch.float32, 32, 64, 56 * 56)


def ask(bucket=BUCKET):
    return tuning.configuration(bucket, GPU, None)


@pytest.fixture
def searched(gpu, monkeypatch):  # noqa: F811
    """A GPU whose searches find a configuration that is not the default; the names of what is searched."""
    names = []

    def fastest_of(configs, run, what):
        names.append(what)
        return configs[-1]

    monkeypatch.setattr(search, "fastest_of", fastest_of)
    assert found(BUCKET) != tuning.default(BUCKET)
    return names


def found(bucket):
    return tuning.candidates(bucket, tuning.MOST_CANDIDATES)[-1]


class TestAsking:
    def test_in_a_context_and_what_is_found_stays(self, searched, tmp_path):
        assert ask() == tuning.default(BUCKET)
        with stn_triton.autotune():
            assert ask() == ask() == found(BUCKET)
        assert ask() == found(BUCKET)
        assert ask(OTHER) == tuning.default(OTHER)
        assert searched == [BUCKET.name()]
        assert list(tmp_path.iterdir()) == []

    def test_by_a_decorator(self, searched):
        tuned = stn_triton.autotune()(ask)
        assert [tuned(), tuned(OTHER)] == [found(BUCKET), found(OTHER)]
        assert ask(LARGE) == tuning.default(LARGE)

    @pytest.mark.parametrize("value", ["0", "", "yes"])
    def test_by_the_environment(self, searched, monkeypatch, value):
        monkeypatch.setenv("STN_TRITON_AUTOTUNE", value)
        assert ask() == tuning.default(BUCKET)
        monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
        assert ask() == found(BUCKET)

    def test_contexts_of_threads_may_overlap(self, searched):
        """The first that is entered is left first."""
        first, second = stn_triton.autotune(), stn_triton.autotune()
        first.__enter__(), second.__enter__()
        first.__exit__(None, None, None)
        assert ask() == found(BUCKET)
        second.__exit__(None, None, None)
        assert ask(OTHER) == tuning.default(OTHER)

    def test_an_error_in_a_context_ends_it(self, searched):
        with pytest.raises(ZeroDivisionError), stn_triton.autotune():
            raise ZeroDivisionError
        assert ask() == tuning.default(BUCKET)

    def test_what_the_shipped_table_has_is_not_searched(self, gpu, searched):  # noqa: F811
        write(gpu, {BUCKET.name(): CONFIG})
        with stn_triton.autotune():
            assert ask() == CONFIG
        assert searched == []

    def test_each_kind_of_gpu_for_itself(self, searched, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        with stn_triton.autotune():
            ask(), tuning.configuration(BUCKET, torch.device("cuda", 1), None)
        assert searched == [BUCKET.name()] * 2

    def test_on_a_cpu_nothing_is_searched(self, searched):
        with stn_triton.autotune():
            assert tuning.configuration(BUCKET, torch.device("cpu"), None) == tuning.default(BUCKET)
        assert searched == []

    def test_a_capture_searches_nothing_and_a_later_call_does(self, searched, monkeypatch):
        with stn_triton.autotune():
            with monkeypatch.context() as patch:
                patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
                assert ask() == tuning.default(BUCKET)
            assert ask() == found(BUCKET)
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert ask() == found(BUCKET)


class TestEpoch:
    def test_whoever_keeps_what_was_chosen_is_never_wrong(self, searched):
        """As a launcher keeps plans, by the epoch; nor does it ask more often than it must."""
        kept = {}

        def keep(bucket=BUCKET):
            key = bucket, tuning.epoch
            if key not in kept:
                kept[key] = ask(bucket)
            return kept[key]

        assert keep() == keep() == ask()
        assert len(kept) == 1
        with stn_triton.autotune():
            assert keep() == keep() == ask() == found(BUCKET)
        assert keep() == ask() == found(BUCKET)
        assert len(kept) == 2
        assert keep(OTHER) == ask(OTHER) == tuning.default(OTHER)
        with stn_triton.autotune():
            assert keep(OTHER) == ask(OTHER) == found(OTHER)

    def test_it_stands_still_where_nothing_changes(self, searched):
        with stn_triton.autotune():
            before = tuning.epoch
            ask(), ask(), ask(OTHER)
        ask(LARGE)
        with tuning.choosing(lambda bucket, run: CONFIG):
            ask()
        assert tuning.epoch == before


class TestThreads:
    def in_threads(self, function):
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(function, range(THREADS)))

    def test_one_searches_and_the_others_wait(self, searched, monkeypatch):
        quick = search.fastest_of
        barrier = threading.Barrier(THREADS)
        monkeypatch.setattr(search, "fastest_of", lambda *args: time.sleep(0.05) or quick(*args))
        buckets = [BUCKET, OTHER] * (THREADS // 2)
        with stn_triton.autotune():
            results = self.in_threads(lambda i: [barrier.wait(10), ask(buckets[i])][1])
        assert results == [found(bucket) for bucket in buckets]
        assert sorted(searched) == sorted([BUCKET.name(), OTHER.name()])

    def test_an_error_in_a_search_leaves_no_lock(self, searched, monkeypatch):
        with stn_triton.autotune():
            with monkeypatch.context() as patch:
                patch.setattr(search, "fastest_of", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    ask()
            assert self.in_threads(lambda i: ask()) == [found(BUCKET)] * THREADS


class TestCandidates:
    @pytest.mark.parametrize("bucket", [BUCKET, OTHER, LARGE], ids=tuning.Bucket.name)
    def test_the_default_and_what_is_near_it(self, bucket):
        space = tuning.space(bucket)
        tried = tuning.candidates(bucket, tuning.MOST_CANDIDATES)
        assert tried[0] == tuning.default(bucket)
        assert len(tried) == min(len(space), 6)
        assert len({tuple(config.values()) for config in tried}) == len(tried)
        assert all(config in space for config in tried)
        assert tuning.candidates(bucket, 16)[: len(tried)] == tried

    def test_a_factor_of_two_counts_whatever_the_size(self):
        first = {"BLOCK_C": 16, "BLOCK_W": 8}
        near, far = {"BLOCK_C": 32, "BLOCK_W": 8}, {"BLOCK_C": 16, "BLOCK_W": 1}
        assert search.nearest([first, far, near], 3) == [first, near, far]
        assert search.nearest([first, far, near], 2) == [first, near]
        assert search.nearest([first], 6) == [first]


CONFIGS = [{"BLOCK_C": 2**i} for i in range(6)]


@pytest.fixture
def clock(monkeypatch):
    """Sets the milliseconds of each configuration, and returns the list of those that are timed."""
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
        assert search.fastest_of(CONFIGS, ran.append, "it") == CONFIGS[3]
        assert timed == list(range(6))
        assert ran == CONFIGS
        assert messages(caplog) == []

    def test_one_that_does_not_run_loses(self, clock):
        clock([3.0, 2.0, 1.0, 4.0, 5.0, 2.5])

        def run(config):
            if config in CONFIGS[2:3]:
                raise RuntimeError("ptxas died")

        assert search.fastest_of(CONFIGS, run, "it") == CONFIGS[1]
        assert search.fastest_of(CONFIGS, lambda config: 1 / 0, "it") == CONFIGS[0]

    def test_an_interruption_ends_it(self, clock):
        clock([1.0] * 6)

        def run(config):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search.fastest_of(CONFIGS, run, "it")

    def test_a_long_one_is_logged_while_it_lasts(self, clock, monkeypatch, caplog):
        clock([1.0] * 6)
        monkeypatch.setattr(search, "_SECONDS_UNSAID", 0.05)
        said = []

        def run(config):
            time.sleep(0.1)
            said.append(len(caplog.records))

        search.fastest_of(CONFIGS, run, BUCKET.name())
        assert said[1:] == [1] * 5
        assert messages(caplog) == [
            f"stn_triton: searching for the fastest block sizes of {BUCKET.name()}, for at most about 30 s"
        ]

    def test_a_short_one_is_not(self, clock, monkeypatch, caplog):
        clock([1.0] * 6)
        monkeypatch.setattr(search, "_SECONDS_UNSAID", 0.2)
        search.fastest_of(CONFIGS, lambda config: None, "it")
        time.sleep(0.3)
        assert messages(caplog) == []


class Pretended:
    """Triton's mode of compiling elsewhere, driven by launches that compile for so many seconds each."""

    active = None

    def __init__(self, executor):
        self.executor = executor

    def __enter__(self):
        if Pretended.active is not None:
            raise RuntimeError("Another AsyncCompileMode is already active")
        Pretended.active = self

    def __exit__(self, *_):
        Pretended.active = None

    def submit(self, key, compile_fn, finalize_fn):
        finalize_fn(self.executor.submit(compile_fn).result())  # a launch waits for its kernel


class Kernel:
    """A launch whose kernel is compiled first, each configuration once."""

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
    """Compile as on a GPU, elsewhere."""
    monkeypatch.setattr(triton, "AsyncCompileMode", Pretended, raising=False)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)


@pytest.mark.usefixtures("side")
class TestCompiling:
    def test_all_at_once_and_nothing_is_launched(self):
        kernel = Kernel([0.3] * 6)
        began = time.monotonic()
        assert search.compile_ahead(CONFIGS, kernel, 30) == [None] * 6
        assert time.monotonic() - began < 1.2
        assert kernel.compiled == {i: i for i in range(6)}
        assert kernel.launched == []
        assert len(kernel.threads) == 6
        assert threading.get_ident() not in kernel.threads

    def test_what_takes_too_long_is_not_waited_for(self, clock):
        timed = clock([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        kernel = Kernel([0.0, 0.0, 5.0, 0.0, -1, 5.0])
        began = time.monotonic()
        errors = search.compile_ahead(CONFIGS, kernel, 0.3)
        assert time.monotonic() - began < 2
        assert [type(error) for error in errors] == [
            *(type(None), type(None), TimeoutError, type(None), ValueError, TimeoutError)
        ]
        assert timed == kernel.launched == []

    def test_a_search_takes_the_best_of_what_is_compiled_in_time(self, clock, monkeypatch):
        timed = clock([3.0, 2.0, 0.1, 2.5, 0.1, 0.1])
        monkeypatch.setattr(search, "SECONDS", 0.5)
        kernel = Kernel([0.0, 0.0, 3.0, 0.0, -1, 3.0])
        assert search.fastest_of(CONFIGS, kernel, "it") == CONFIGS[1]
        assert timed == kernel.launched == [0, 1, 3]

    def test_without_any_in_time_the_first_is_waited_for(self, clock, monkeypatch):
        timed = clock([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        monkeypatch.setattr(search, "SECONDS", 0.1)
        assert search.fastest_of(CONFIGS, Kernel([3.0, 0.4, 3.0, 3.0, 3.0, 3.0]), "it") == CONFIGS[1]
        assert timed == [1]

    def test_on_one_core_the_default_comes_first(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        kernel = Kernel([0.1] * 6)
        errors = search.compile_ahead(CONFIGS, kernel, 0.25)
        assert errors[0] is None
        assert isinstance(errors[5], TimeoutError)
        begun = list(kernel.begun)
        time.sleep(0.4)
        assert kernel.begun == begun == list(range(len(begun)))  # what had not begun never does

    def test_one_that_is_compiled_already_is_launched(self):
        kernel = Kernel([0.0] * 6)
        kernel(CONFIGS[2])
        assert search.compile_ahead(CONFIGS, kernel, 30) == [None] * 6
        assert kernel.launched == [2, 2]

    def test_a_failed_launch_leaves_no_reference_to_what_it_held(self):
        """Its frames have the tensors of a call; in a cycle they would be kept until Python finds those."""
        import gc
        import weakref

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
            errors = search.compile_ahead(CONFIGS, run, 30)
            assert [reference() for reference in held] == [None] * 6
        finally:
            gc.enable()
        assert [str(error) for error in errors] == ["no memory"] * 3 + ["None"] * 3

    @pytest.mark.parametrize("why", ["the user's", "none"])
    def test_without_a_mode_each_is_compiled_by_its_launch(self, clock, monkeypatch, why):
        timed, kernel = clock([3.0, 2.0, 1.0, 2.0, 2.0, 2.0]), Kernel([0.0] * 6)
        mode = Pretended(ThreadPoolExecutor(2))
        if why == "none":
            monkeypatch.delattr(triton, "AsyncCompileMode")
            assert search.fastest_of(CONFIGS, kernel, "it") == CONFIGS[2]
            assert kernel.threads == {threading.get_ident()}
        else:
            with mode:
                assert search.fastest_of(CONFIGS, kernel, "it") == CONFIGS[2]
                assert Pretended.active is mode
        assert timed == list(range(6))

    def test_without_a_mode_too_the_time_is_limited(self, clock, monkeypatch):
        monkeypatch.delattr(triton, "AsyncCompileMode")
        timed = clock([3.0, 2.0, 1.0, 0.5, 0.5, 0.5])
        for seconds, expected in ((0.0, [1]), (0.9, [1, 2])):
            monkeypatch.setattr(search, "SECONDS", seconds)
            timed.clear()
            kernel = Kernel([-1, 0.5, 0.5, 0.5, 0.5, 0.5])
            assert search.fastest_of(CONFIGS, kernel, "it") == CONFIGS[expected[-1]]
            assert timed == expected


def test_real_kernels_are_compiled_side_by_side_and_found_when_they_are_launched(tmp_path):
    """Through Triton itself, for a GPU that is not here: a launch would fail."""
    code = """
    import threading
    import torch
    from perf.kernels import ahead
    from perf.measuring import providers
    from perf.tuning import launches
    from stn_triton import search, tuning
    from triton import knobs

    found, hits, threads = [], [], set()

    def choose(bucket, run):
        configs = tuning.candidates(bucket, 3)
        errors = search.compile_ahead([*configs, {**configs[0], "num_warps": 3}], run, 300)
        assert errors[:3] == [None] * 3, errors
        assert errors[3] is not None
        found.append(bucket.kernel)
        return configs[2]

    def listen(*, cache_hit, **_):
        hits.append(cache_hit)
        threads.add(threading.get_ident())

    input = torch.rand(2, 8, 16, 16).requires_grad_()
    theta = torch.eye(2, 3).repeat(2, 1, 1).requires_grad_()
    kernels = []
    with ahead.compiling(("cuda", 90, 32), lambda: True, kernels), launches.OntoKernels():
        knobs.compilation.listener = listen
        with tuning.choosing(choose):
            output = torch.ops.stn_triton.affine_grid_sample(
                input.detach(), theta.detach(), None, None, (16, 16), "bilinear", "zeros", False, False, ()
            )
    assert found == ["forward"], found
    assert len(kernels) == 1, kernels  # the launch of the one that was chosen
    assert kernels[0].asm["cubin"]
    assert hits == [False] * 3, hits  # none compiled again
    assert threading.get_ident() not in threads
    print("as it should be")
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "as it should be\n", done.stderr
