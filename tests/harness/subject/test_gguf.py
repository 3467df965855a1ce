"""GGUF files: converted once, or refused, and nothing half-made is left behind."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

from kvdelta.harness.subject import gguf
from kvdelta.harness.subject.model import load_model

pytestmark = pytest.mark.usefixtures("cache")

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama with byte tokens, float32; returns its tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(ALPHABET) + 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*ALPHABET, "<end>", "ab", "aba"])
    writer.add_token_types([1] * len(ALPHABET) + [3, 1, 1])
    writer.add_token_merges(["a b", "ab a"])
    writer.add_bos_token_id(len(ALPHABET))
    writer.add_eos_token_id(len(ALPHABET))
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(ALPHABET) + 3, 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    block |= {"attn_output": (32, 32), "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    tensors = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


class TestGGUF:
    def test_converts_once_and_keeps_the_weights(self, tmp_path, cache, monkeypatch):
        path = tmp_path / "tiny.gguf"
        tensors = write_gguf(path)
        messages = []
        loaded = load_model(str(path), progress=messages.append)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert loaded.name == "tiny.gguf"
        assert loaded.source == {
            "kind": "gguf",
            "id": "tiny.gguf",
            "sha256": sha256,
            "architecture": "LlamaForCausalLM",
        }
        assert np.array_equal(loaded.model.get_input_embeddings().weight.numpy(), tensors["token_embd.weight"])
        layer = loaded.model.model.layers[0]
        assert np.array_equal(layer.mlp.down_proj.weight.numpy(), tensors["blk.0.ffn_down.weight"])
        assert len(messages) == 1
        assert [p.name for p in cache.iterdir() if p.name != "lock"] == ["models"]
        monkeypatch.setattr(gguf, "convert", None)  # the second load must not need it
        again = load_model(str(path), progress=messages.append)
        assert len(messages) == 1
        assert torch.equal(again.model.get_input_embeddings().weight, loaded.model.get_input_embeddings().weight)

    @pytest.mark.parametrize("damaged", ["model.safetensors", "tokenizer.json", gguf.ORIGIN])
    def test_a_flipped_bit_in_the_converted_copy_is_found_and_the_copy_made_again(self, tmp_path, damaged):
        path = tmp_path / "tiny.gguf"
        write_gguf(path)
        folder, sha256 = gguf.gguf_folder(path, lambda message: None)
        content = bytearray((folder / damaged).read_bytes())
        content[-9] ^= 1
        (folder / damaged).write_bytes(content)
        messages: list[str] = []
        assert gguf.gguf_folder(path, messages.append) == (folder, sha256)
        assert "is damaged; it is made again" in messages[0]
        assert gguf.is_converted(folder)
        messages.clear()
        gguf.gguf_folder(path, messages.append)
        assert not messages

    def test_one_line_and_no_progress_bars(self, tmp_path, capfd):
        write_gguf(tmp_path / "tiny.gguf")
        load_model(str(tmp_path / "tiny.gguf"))
        output = capfd.readouterr()
        assert (output.out, output.err) == ("", "converting tiny.gguf to safetensors (half a minute; once)\n")

    def test_not_gguf(self, tmp_path, refused):
        (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 not it")
        with refused("not a GGUF file: it begins with b'PK"):
            load_model(str(tmp_path / "x.gguf"))

    def test_damaged(self, tmp_path, cache, refused):
        path = tmp_path / "x.gguf"
        write_gguf(path)
        path.write_bytes(path.read_bytes()[:3000])
        with refused(r'transformers cannot read "x\.gguf"'):
            load_model(str(path))
        assert not (cache / "models").exists()
        assert not (cache / "work").exists()

    def test_revision_is_refused(self, tmp_path, refused):
        write_gguf(tmp_path / "x.gguf")
        with refused("--revision"):
            load_model(str(tmp_path / "x.gguf"), revision="main")

    def test_disk_full(self, tmp_path, free_bytes, cache, refused):
        write_gguf(tmp_path / "x.gguf")
        free_bytes(1000)
        with refused(r"no disk space for the converted copy .* KVDELTA_CACHE"):
            load_model(str(tmp_path / "x.gguf"))
        assert not (cache / "models").exists()
