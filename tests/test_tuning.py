"""Buckets, tables on disk and the choice among them; no GPU needed, none is used."""

import json
from pathlib import Path

import pytest
import torch

from stn_triton import tuning
from stn_triton.options import DEFAULT

CONFIG = {"BLOCK_C": 4, "RUN_C": 1, "BLOCK_H": 8, "BLOCK_W": 8, "num_warps": 2}
PLAIN = tuning.variant_of(2, False, False, False, DEFAULT)
BUCKET = tuning.bucket_of("forward", PLAIN, False, torch.float32, 8, 3, 224 * 224)
OTHER = BUCKET._replace(kernel="theta")
GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU of a name that no table has; returns where its table would lie."""
    monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imaginary GPU (80 GB)")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: pytest.fail("tuned"))
    tuning._tables.clear(), tuning._slug.cache_clear()
    yield tmp_path / "cache" / "imaginary-gpu-80-gb.json"
    tuning._tables.clear(), tuning._slug.cache_clear()


def write(path, configs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kernels": tuning._kernels(), "configs": configs}))


@pytest.mark.parametrize(
    ("layout", "channels"),
    [(layout, c) for layout in ("nchw", "channels_last") for c in (1, 4, 16, 128)]
    + [("channels_last_16", 16), ("channels_last_16", 128)],
)
@pytest.mark.parametrize("pixels", [64, 2**15])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_every_configuration_of_the_space_can_be_launched(layout, channels, pixels, dtype):
    bucket = tuning.Bucket("backward", PLAIN, layout, dtype, channels, pixels, 512)
    space = tuning.space(bucket)
    assert space[0] == tuning.default(bucket)
    assert len(space) == len({tuple(config.values()) for config in space})
    for config in space:
        assert tuning._is_valid(bucket, config)
        assert config["BLOCK_C"] <= channels
        assert config["RUN_C"] <= config["BLOCK_C"]
        if layout == "nchw":
            assert config["RUN_C"] == 1
        # A thread has at least a pixel's lane, at most two, so that no thread idles or repeats coordinates.
        lanes = config["RUN_C"] // bucket.lane() * config["BLOCK_H"] * config["BLOCK_W"]
        assert 1 <= lanes / (32 * config["num_warps"]) <= 2


def test_sizes_of_one_bucket_share_a_tuning_and_its_name_leads_back():
    same = tuning.bucket_of("forward", PLAIN, False, torch.float32, 9, 3, 200 * 230)
    assert same == BUCKET
    assert tuning.bucket_of("forward", PLAIN, False, torch.float32, 8, 3, 28 * 28) != BUCKET
    assert tuning.bucket_of("forward", PLAIN, True, torch.float32, 8, 3, 224 * 224) != BUCKET
    assert tuning.bucket_of("forward", PLAIN, False, torch.float16, 8, 3, 224 * 224) != BUCKET
    assert tuning.Bucket.parse(BUCKET.name()) == BUCKET


def test_channels_last_reads_whole_vectors_only_where_16_divides_the_channels():
    assert tuning.bucket_of("forward", PLAIN, True, torch.float32, 1, 48, 64).lane() == 4
    assert tuning.bucket_of("forward", PLAIN, True, torch.bfloat16, 1, 48, 64).lane() == 8
    assert tuning.bucket_of("forward", PLAIN, True, torch.float32, 1, 40, 64).lane() == 1


def test_a_bucket_is_tuned_once_and_kept_on_disk(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: calls.append(bucket) or CONFIG)
    for _ in range(2):
        assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    tuning._tables.clear()  # as a new process
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert calls == [BUCKET]
    assert json.loads(gpu.read_text())["configs"] == {BUCKET.name(): CONFIG}


def test_a_shipped_table_is_used_untuned_and_comes_before_the_user_s(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuned")
    write(tmp_path / "tuned" / gpu.name, {BUCKET.name(): CONFIG})
    write(gpu, {BUCKET.name(): {**CONFIG, "num_warps": 4}})
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert tuning.shipped_configurations() == [(BUCKET, CONFIG)]


def test_the_default_is_used_inside_a_capture_when_switched_off_and_without_a_gpu(gpu, monkeypatch):
    default = tuning.default(BUCKET)
    assert tuning.configuration(BUCKET, torch.device("cpu"), None) == default
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "0")
    assert tuning.configuration(BUCKET, GPU, None) == default
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.configuration(BUCKET, GPU, None) == default
    assert not gpu.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"configs": 3}',
        '{"other": {}}',
        json.dumps({"configs": {BUCKET.name(): {**CONFIG, "BLOCK_C": 2**20}}}),
        json.dumps({"configs": {BUCKET.name(): {**CONFIG, "BLOCK_C": 3}}}),
        json.dumps({"configs": {BUCKET.name(): {**CONFIG, "BLOCK_C": "4"}}}),
        json.dumps({"configs": {BUCKET.name(): {**CONFIG, "num_warps": 32}}}),
        json.dumps({"configs": {BUCKET.name(): {**CONFIG, "RUN_C": 4}}}),  # would address wrong memory
        json.dumps({"configs": {"../../" + BUCKET.name(): CONFIG}}),
        json.dumps({"configs": {BUCKET.name(): {"BLOCK_C": 4}}}),
        json.dumps({"configs": {BUCKET.name(): {**CONFIG, "extra": 1}}}),
        b"\xff\xfe\x00",
    ],
)
def test_a_corrupt_table_costs_only_the_cache(gpu, monkeypatch, content):
    gpu.parent.mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    gpu.write_bytes(content.replace(b'{"configs"', f'{{"kernels": "{tuning._kernels()}", "configs"'.encode()))
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: CONFIG)
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert json.loads(gpu.read_text())["configs"] == {BUCKET.name(): CONFIG}


def test_a_cache_that_cannot_be_written_costs_only_the_cache(gpu, monkeypatch):
    gpu.parent.write_text("a file where the directory should be")
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: CONFIG)
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG


def test_a_failed_write_leaves_the_old_table_and_no_litter(gpu, monkeypatch):
    write(gpu, {OTHER.name(): CONFIG})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: CONFIG)
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert json.loads(gpu.read_text())["configs"] == {OTHER.name(): CONFIG}
    assert list(gpu.parent.iterdir()) == [gpu]


def test_tables_of_two_processes_are_merged(gpu, monkeypatch):
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: CONFIG)
    tuning._table(gpu.stem)  # this process reads the table before the other writes
    write(gpu, {OTHER.name(): CONFIG})
    tuning.configuration(BUCKET, GPU, None)
    assert json.loads(gpu.read_text())["configs"] == {BUCKET.name(): CONFIG, OTHER.name(): CONFIG}


def test_a_tuning_of_other_kernels_is_forgotten(gpu, monkeypatch):
    write(gpu, {BUCKET.name(): {**CONFIG, "num_warps": 4}})
    monkeypatch.setattr(tuning, "_kernels", lambda: "newer")
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: CONFIG)
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert json.loads(gpu.read_text()) == {"kernels": "newer", "configs": {BUCKET.name(): CONFIG}}


def test_a_configuration_that_does_not_compile_loses(monkeypatch):
    import triton.testing

    best = tuning.space(BUCKET)[2]

    def run(config):
        if config == best:
            return 1.0
        raise RuntimeError("ptxas died")

    monkeypatch.setattr(triton.testing, "do_bench", lambda function, **options: function())
    assert len(tuning.space(BUCKET)) > 3
    assert tuning.tune(BUCKET, run) == best
    monkeypatch.setattr(triton.testing, "do_bench", lambda function, **options: 1 / 0)
    assert tuning.tune(BUCKET, run) == tuning.default(BUCKET)
