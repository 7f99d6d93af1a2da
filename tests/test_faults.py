"""What is left after something gave way: memory, a disk, a process, a signal, a fork.

Interrupted runs of ``perf tune`` are in test_tune_state.py, tables that are corrupt in test_tuning.py,
threads in test_citizen.py.
"""

import contextlib
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import triton.testing
from sparse import SomePrograms
from test_tuning import BUCKET, CONFIG, GPU, NAME, OTHER, gpu, messages, write  # noqa: F401, a fixture
from torch.utils._python_dispatch import TorchDispatchMode

from stn_triton import (
    affine_grid_sample,
    launch,
    ops,
    reference,
    reference_tangent,
    splines,
    tables,
    thin_plate_spline_grid_sample,
    tuning,
)

OPERATORS = (
    ops.affine_grid_sample,
    ops.affine_grid_sample_backward,
    ops.affine_grid_sample_tangent,
    ops.affine_grid_sample_tangent_backward,
)
IMPLEMENTATIONS = {
    "kernels": ops._implementations(lambda: launch, lambda: launch),
    "plain PyTorch": ops._implementations(lambda: reference, lambda: reference_tangent),
}
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's processes must not fork")


class Allocations(TorchDispatchMode):
    """Counts tensors with memory of their own; there is none for the one at ``last``."""

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
    """The operators, implemented one way or the other, with memory for so many tensors within them."""

    def __init__(self, path, last):
        super().__init__()
        self.implementations = dict(zip(OPERATORS, IMPLEMENTATIONS[path], strict=True))
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
    """A second derivative."""
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
    """Forward and backward; how many tensors they allocated."""
    with Scarce(path, last) as mode:
        function(*tensors).square().sum().backward()
    return mode.memory.count


@on_a_cpu
class TestMemory:
    @pytest.mark.parametrize("path", IMPLEMENTATIONS)
    @pytest.mark.parametrize("function", [affine, with_fill, penalty, spline], ids=lambda f: f.__name__)
    def test_a_call_without_enough_leaves_nothing_behind(self, function, path, monkeypatch):
        """For each tensor that it allocates, forward and backward, to .grad that is None and that is not."""
        tensors = leaves(function)
        step(path, function, tensors)
        expected = [t.grad for t in tensors]
        with monkeypatch.context() as patch:
            for name in [name for name in vars(launch) if name.endswith("_kernel")]:
                # What kernels would write is lost anyway.
                patch.setattr(launch, name, SomePrograms(getattr(launch, name), lambda programs: ()))
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
        assert count >= 4
        for t in tensors:
            t.grad = None
        step(path, function, tensors)
        assert all(torch.equal(t.grad, grad) for t, grad in zip(tensors, expected, strict=True))


class TestTuning:
    """The real search, with a clock that gives way."""

    @pytest.fixture
    def clock(self, gpu, monkeypatch):  # noqa: F811
        """Replace what times; the first call of a process tunes."""
        monkeypatch.setattr(tuning, "tune", TUNE)

        def use(bench):
            tuning._tables.clear()
            monkeypatch.setattr(triton.testing, "do_bench", bench)

        return use

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_an_interruption_costs_what_was_timed(self, gpu, clock, error):  # noqa: F811
        timed = []

        def stop(run, **options):
            timed.append(run)
            if len(timed) == 3:
                raise error
            return 1.0, 1.0, 1.0

        clock(stop)
        with pytest.raises(error):
            tuning.configuration(BUCKET, GPU, lambda config: None)
        assert len(timed) == 3
        assert not gpu.exists()
        assert not tuning._lock.locked()
        assert tuning.configuration(BUCKET, GPU, lambda config: None) == tuning.default(BUCKET)
        assert set(tables.load(gpu, tuning.checked)[0]) == {BUCKET}

    def test_where_nothing_could_be_timed_nothing_is_kept(self, gpu, clock):  # noqa: F811
        """With no memory for timing, a call takes the default; the next process tunes."""
        timed = []

        def full(run, **options):
            timed.append(run)
            raise torch.OutOfMemoryError("CUDA out of memory")

        clock(full)
        for _ in range(2):
            assert tuning.configuration(BUCKET, GPU, print) == tuning.default(BUCKET)
        assert len(timed) == len(tuning.space(BUCKET))  # once
        assert not gpu.exists()
        best = tuning.space(BUCKET)[-1]
        clock(lambda run, **options: (1.0 + (run.args[0] != best),) * 3)
        assert tuning.configuration(BUCKET, GPU, print) == best
        assert tables.load(gpu, tuning.checked)[0] == {BUCKET: best}

    def test_configurations_without_memory_lose(self, gpu, clock):  # noqa: F811
        best = tuning.space(BUCKET)[2]

        def bench(run, **options):
            if run.args[0] not in tuning.space(BUCKET)[:3]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return (1.0 + (run.args[0] != best),) * 3

        clock(bench)
        assert tuning.configuration(BUCKET, GPU, print) == best
        assert tables.load(gpu, tuning.checked)[0] == {BUCKET: best}

    def test_what_won_because_the_default_found_no_memory_is_for_this_process(self, gpu, clock):  # noqa: F811
        """The call at hand runs with it; what it would be on a GPU that is not full is not known."""
        runs = []

        def bench(run, **options):
            runs.append(run)
            if run.args[0] != tuning.space(BUCKET)[-1]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 1.0, 1.0, 1.0

        clock(bench)
        for _ in range(2):
            assert tuning.configuration(BUCKET, GPU, print) == tuning.space(BUCKET)[-1]
        assert len(runs) == len(tuning.space(BUCKET))  # once
        assert not gpu.exists()


TUNE = tuning.tune


def in_child(function, *, seconds=60):
    """Run in a forked process; its exit code, None if it hangs."""

    def run():
        try:
            function()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def keeps(bucket=BUCKET):
    """Tunes a bucket, as the first call of a process, and says whether its table has it then."""
    tuning._tables.clear()
    tuning.tune = lambda bucket, run: (CONFIG, True)
    assert tuning.configuration(bucket, GPU, None) == CONFIG
    return bucket in tables.load(tables.cache_path(NAME), tuning.checked)[0]


@pytest.fixture
def open_folder():
    """Where other users may go."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def become_nobody():
    """Root may write everywhere."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)


@on_a_cpu
class TestDisk:
    def test_a_disk_that_is_full_in_the_middle_of_a_file(self, gpu, caplog):  # noqa: F811
        """A real short write; the table that was there stays."""
        write(gpu, {OTHER.name(): CONFIG})
        before = gpu.read_bytes()

        def full():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            assert not keeps()
            assert any("cannot be written" in text for text in messages(caplog))

        assert in_child(full) == 0
        assert gpu.read_bytes() == before
        assert list(gpu.parent.iterdir()) == [gpu]

    def test_a_directory_that_may_not_be_written(self, gpu, open_folder, monkeypatch, caplog):  # noqa: F811
        cache = open_folder / "cache"
        monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(cache))
        path = tables.cache_path(NAME)
        write(path, {OTHER.name(): CONFIG})
        path.chmod(0o644), cache.chmod(0o555)

        def read_only():
            become_nobody()
            assert not keeps()
            assert tuning.configuration(OTHER, GPU, None) == CONFIG  # it may be read
            told = messages(caplog)
            told = [text for text in told if str(path) in text]  # of the shipped ones' place nobody knows
            assert len(told) == 1
            assert f"{path} cannot be written (Permission denied)" in told[0]

        assert in_child(read_only) == 0
        assert list(cache.iterdir()) == [path]
        cache.chmod(0o755)

    @pytest.mark.parametrize("home", [None, "/nonexistent/home"])
    def test_a_user_without_a_home(self, gpu, open_folder, monkeypatch, home, caplog):  # noqa: F811
        """As in a container that was started with any number for a user; nothing lands in the directory."""
        if os.getuid() != 0:
            pytest.skip("only root can become a user who is not known")
        work = open_folder / "work"
        work.mkdir()
        work.chmod(0o777)
        for name in ("STN_TRITON_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        if home:
            monkeypatch.setenv("HOME", home)

        def homeless():
            os.chdir(work)
            become_nobody()
            assert not keeps()
            assert any("cannot be written" in text for text in messages(caplog))

        assert in_child(homeless) == 0
        assert list(work.iterdir()) == []

    def test_a_writer_that_is_killed_leaves_a_table_and_no_lock(self, gpu):  # noqa: F811
        def write_on():
            for planes in itertools.cycle((8, 64, 512, 4096)):
                tuning.write_table(gpu, NAME, {BUCKET._replace(planes=planes): CONFIG})

        for wait in (0.05, 0.1, 0.15):
            process = FORK.Process(target=write_on)
            process.start()
            deadline = time.monotonic() + 30
            while not gpu.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert tables.read(gpu, NAME) is not None
            began = time.monotonic()
            tuning.write_table(gpu, NAME, {OTHER: CONFIG})
            assert time.monotonic() - began < 5
            assert OTHER in tables.load(gpu, tuning.checked)[0]


@on_a_cpu
class TestForks:
    def test_a_fork_while_a_thread_tunes(self, gpu):  # noqa: F811
        """The child has no such thread: locks that it inherited would never open."""
        with tuning._lock, tuning._loading, tables._telling:
            assert in_child(lambda: tables.tell_once("heard") or keeps(), seconds=30) == 0

    def test_a_child_does_not_keep_a_folder_locked(self, tmp_path, monkeypatch):
        """It has a copy of the open file, and may outlive the writing by hours."""
        monkeypatch.setattr(tables, "_PATIENCE", 60)
        with tables.locked(tmp_path):
            process = FORK.Process(target=time.sleep, args=(120,))
            process.start()
        try:
            began = time.monotonic()
            with tables.locked(tmp_path):
                assert time.monotonic() - began < 10
        finally:
            process.kill()
            process.join()

    def test_whoever_holds_on_to_a_folder_is_waited_for_a_while(self, gpu, monkeypatch):  # noqa: F811
        monkeypatch.setattr(tables, "_PATIENCE", 0.2)
        gpu.parent.mkdir()
        held, done = threading.Event(), threading.Event()

        def hold():
            with tables.locked(gpu.parent):
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert held.wait(10)
            assert keeps()
        finally:
            done.set()
            thread.join()
            tuning.tune = TUNE

    def test_a_lock_that_is_free_soon_is_waited_for(self, tmp_path):
        order = []

        def hold():
            with tables.locked(tmp_path):
                held.set()
                time.sleep(0.2)
                order.append("first")

        held = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        with tables.locked(tmp_path):
            order.append("second")
        thread.join()
        assert order == ["first", "second"]


class Warped(torch.utils.data.Dataset):
    """Warps where it is read: augmentation, with gradients or without."""

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
        expected = [dataset[i] for i in range(len(dataset))]  # threads, caches: before the workers are there
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=2, num_workers=workers, multiprocessing_context=start, timeout=120
        )
        found = [torch.cat(parts) for parts in zip(*loader, strict=True)]
        for actual, parts in zip(found, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(actual, torch.stack(parts), rtol=1e-6, atol=1e-6)

    def test_an_interrupt_stops_a_call_and_the_next_one_works(self):
        """Python raises between the steps of an operator as it does anywhere."""
        dataset = Warped(True)
        expected = dataset[0]
        stop = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with contextlib.suppress(KeyboardInterrupt):
            stop.start()
            while True:
                dataset[0]
        for actual, wanted in zip(dataset[0], expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
