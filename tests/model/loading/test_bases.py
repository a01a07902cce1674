"""Places that a checkpoint may read: its own folder, and a base decoder that the user or the checkpoint names."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from pisco_index import new_checkpoint, open_checkpoint
from pisco_index.errors import CheckpointError


def name_base(folder, name):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_model_name": name}))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Check that nothing tries to reach the network."""
    attempts = []

    def refuse(*address, **_):
        attempts.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert attempts == []


class TestNames:
    def test_bases_are_found_inside_beside_or_below_the_working_folder(self, folder, tmp_path, monkeypatch):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.find_decoder_base() == str(folder / "base_decoder")
        shutil.move(folder / "base_decoder", folder.parent / "base_decoder")
        assert checkpoint.find_decoder_base() == str(folder.parent / "base_decoder")
        monkeypatch.chdir(folder)
        assert open_checkpoint(".").find_decoder_base() == str(folder.parent / "base_decoder")
        (tmp_path / "elsewhere").mkdir()
        shutil.move(folder.parent / "base_decoder", tmp_path / "elsewhere" / "base_decoder")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert checkpoint.find_decoder_base() == str(tmp_path / "elsewhere" / "base_decoder")

    def test_a_checkpoint_moves_with_its_bases(self, folder, tmp_path, load_everything):
        before = open_checkpoint(folder).identity
        moved = Path(shutil.move(folder, tmp_path / "moved"))
        load_everything(moved)
        assert open_checkpoint(moved).identity == before

    def test_another_base_can_be_named(self, folder, tmp_path, load_everything):
        base = shutil.move(folder / "base_decoder", tmp_path / "mine")
        load_everything(folder, decoder_base=str(base))
        described = open_checkpoint(folder, decoder_base=str(base), compressor_base="Qwen/Qwen3-0.6B").describe()
        assert (described["decoder"]["base"], described["compressor"]["base"]) == (str(base), "Qwen/Qwen3-0.6B")

    def test_a_hub_name_is_taken_from_the_cache(self, folder, tmp_path, monkeypatch, load_everything):
        cached = tmp_path / "cache" / "models--someone--some-model"
        shutil.move(folder / "base_decoder", cached / "snapshots" / "abc")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        load_everything(folder, decoder_base="someone/some-model")
        new_checkpoint(tmp_path / "new", "someone/some-model", "someone/some-model", mlp_dim=8, lora_rank=1)
        assert open_checkpoint(tmp_path / "new").decoder_base == "someone/some-model"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            *(
                (name, rf"'{name}' is no model folder.*--decoder-base")
                for name in ("/nowhere/base", "./base", "../base")
            ),
            ("~/no-such-base", r"/no-such-base' is no model folder.*--decoder-base"),
            ("someone/some-model", r"^someone/some-model: neither .*hf download someone/some-model"),
            ("not a name: at all", "^not a name: at all: neither"),
            ("a/b/c", "^a/b/c: neither"),
        ],
    )
    def test_a_base_that_cannot_be_found_is_an_error_and_not_downloaded(self, folder, load_everything, name, message):
        with pytest.raises(CheckpointError, match=message):
            load_everything(folder, decoder_base=name)

    @pytest.mark.parametrize("name", ["/etc", "/etc/passwd", "/dev", "a\0b", "x" * 5000, "~nobody-at-all/x", "", "\n"])
    def test_a_checkpoint_may_name_no_model(self, folder, load_everything, name):
        name_base(folder, name)
        with pytest.raises(CheckpointError):
            load_everything(folder)


class TestWaysOut:
    """A checkpoint reads its own folder, and a base decoder elsewhere only by an absolute path or a hub name."""

    @pytest.mark.parametrize(
        "name", ["../other", "base_decoder/../../other", "../../../../../../etc", "..", "~/../other", "./../other"]
    )
    def test_a_checkpoint_may_not_name_a_parent_folder(self, folder, load_everything, refused, name):
        shutil.move(folder / "base_decoder", folder.parent / "other")
        name_base(folder, name)
        message = rf"^{folder}/config.json: decoder_model_name '.*' leads out of the checkpoint's folder"
        refused(message, load_everything, folder)

    def test_its_user_may(self, folder, load_everything, monkeypatch):
        shutil.move(folder / "base_decoder", folder.parent / "other")
        load_everything(folder, decoder_base="../checkpoint/../other")

    @pytest.mark.fault(
        "A checkpoint asks for more memory than its files hold, or for other files.",
        "It is refused before anything is allocated or read.",
    )
    @pytest.mark.parametrize(
        "name",
        [
            "config.json",
            "connector.pt",
            "decoder_state.pt",
            "compressor",
            "compressor/config.json",
            "compressor/model.safetensors",
            "compressor_tokenizer/tokenizer.json",
            "decoder_tokenizer/chat_template.jinja",
            "base_decoder",
            "base_decoder/model.safetensors",
        ],
    )
    def test_links_do_not_lead_out(self, folder, load_everything, refused, name):
        outside = folder.parent / "outside"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)
        refused("leads out of|a link out of", load_everything, folder)

    def test_links_inside_the_folder_and_to_the_folder_are_followed(self, folder, load_everything):
        shutil.move(folder / "connector.pt", folder / "compressor" / "connector.pt")
        (folder / "connector.pt").symlink_to("compressor/connector.pt")
        (folder.parent / "latest").symlink_to(folder)
        load_everything(folder.parent / "latest")

    def test_links_in_the_cache_of_the_hub_are_followed(self, folder, load_everything):
        blobs = folder.parent / "models--a--b" / "blobs"
        blobs.mkdir(parents=True)
        snapshot = Path(shutil.move(folder, blobs.parent / "snapshots" / "0123"))
        for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
            blob = Path(shutil.move(path, blobs / str(number)))
            path.symlink_to(os.path.relpath(blob, path.parent))
        load_everything(snapshot)
