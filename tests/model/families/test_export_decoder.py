"""An exported decoder computes what the checkpoint's does, in plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pisco_index import Decoder
from pisco_index.errors import CheckpointError
from pisco_index.model.families import export_decoder as module
from pisco_index.model.families.export_decoder import export_decoder
from pisco_index.model.memory import Memory


@pytest.mark.parametrize("architecture", ["qwen3", "llama3", "gpt2"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_plain_model(made, dtype, tmp_path):
    exported = export_decoder(made, tmp_path / "out", dtype=dtype)
    decoder = Decoder.load(made, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    ids = decoder.prompt_ids("Who?", [3])
    width = model.get_input_embeddings().weight.shape[1]
    memory = Memory(torch.randn(3, width), (3,), "embedding", decoder.memory_digest)
    with torch.inference_mode():
        found = model(inputs_embeds=decoder.embed(ids, memory)[None]).logits[0]
        torch.testing.assert_close(found.float(), decoder.logits(ids, memory), atol=1e-2, rtol=1e-2)
    assert exported.width == width
    assert exported.bytes > 0
    assert model.generation_config.eos_token_id == list(decoder.generation.stop_token_ids)


def test_its_chat_template_takes_parts(tiny, tmp_path):
    export_decoder(tiny, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]
    texts = [
        each.apply_chat_template(
            [{"role": "system", "content": "S"}, {"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for each, content in ((tiny.decoder_tokenizer, "Who is it?"), (tokenizer, "Who is it?"), (tokenizer, parts))
    ]
    assert len(set(texts)) == 1


def test_what_is_written_wrongly_is_noticed_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    save = module.save_finite_model

    def broken(model, folder, origin):
        save(model, folder, origin)
        other = AutoModelForCausalLM.from_pretrained(folder)
        torch.nn.init.normal_(other.lm_head.weight)
        other.save_pretrained(folder)

    monkeypatch.setattr(module, "save_finite_model", broken)
    with pytest.raises(CheckpointError, match="first logits"):
        export_decoder(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tiny, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(CheckpointError):
        export_decoder(tiny, tmp_path)
