"""The decoder's embeddings and LoRA pairs, merged into its base."""

import pytest
import torch
from torch import nn

from pisco_index import new_checkpoint
from pisco_index.errors import CheckpointError
from pisco_index.model.loading.adapters import merge_decoder_state

UP = "model.layers.0.mlp.up_proj"


def test_any_architecture_computes_base_and_pairs(made):
    """``W + 2·B·A`` gives what a base gives with each pair beside its linear layer."""
    torch.manual_seed(0)
    trained = {name: torch.randn_like(tensor) * 0.1 for name, tensor in made.load_decoder_state().items()}
    merged = made.load_decoder_base(dtype=torch.float32)
    merge_decoder_state(merged, trained, "decoder_state.pt")

    base = made.load_decoder_base(dtype=torch.float32)
    saved = "modules_to_save.default."
    adapters = {name.partition(".lora_A.")[0] for name in trained if ".lora_A." in name}
    for name in adapters:
        down, up = (trained[f"{name}.lora_{ab}.default.weight"] for ab in "AB")
        base.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, down=down, up=up: output + 2 * (inputs[0] @ down.T @ up.T)
        )
    wholes = {name.partition(f".{saved}")[0] for name in trained if saved in name}
    assert len(wholes) == 2
    for name in wholes:
        module = base.get_submodule(name)
        for kind, _ in list(module.named_parameters()):
            setattr(module, kind, nn.Parameter(trained[f"{name}.{saved}{kind}"]))
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, base(ids).logits, rtol=1e-4, atol=1e-5)


def test_tied_embeddings_become_two(tiny):
    model = tiny.load_decoder_base(dtype=torch.float32)
    assert model.config.tie_word_embeddings
    merge_decoder_state(model, tiny.load_decoder_state(), "decoder_state.pt")
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert tables[0].data_ptr() != tables[1].data_ptr()


def test_the_trained_copy_is_used(tiny):
    state = tiny.load_decoder_state()
    name = "lm_head.modules_to_save.default.weight"
    state[name] = torch.ones_like(state[name])
    model = tiny.load_decoder_base(dtype=torch.float32)
    merge_decoder_state(model, state, "decoder_state.pt")
    assert torch.equal(model.lm_head.weight, state[name].float())
    assert not torch.equal(model.model.embed_tokens.weight, state[name].float())


def test_weight_and_bias_of_a_head_have_the_same_rows(make_base, tmp_path):
    made = new_checkpoint(tmp_path / "phi", make_base("phi"), make_base("phi"), mlp_dim=8, lora_rank=1)
    state = made.load_decoder_state()
    name = "lm_head.modules_to_save.default.bias"
    state[name] = state[name][:-1]
    with pytest.raises(CheckpointError, match=r"^here: weight and bias of lm_head differ in rows"):
        merge_decoder_state(made.load_decoder_base(dtype=torch.float32), state, "here")


# Changes of a good state (None removes a tensor), and the message of the error.
MISFITS = {
    "a stranger": ({"stranger": torch.zeros(1)}, "1 tensors have no place, the first: stranger"),
    "no embeddings": ({"model.embed_tokens.modules_to_save.default.weight": None}, "lacks model.embed_tokens"),
    "embeddings of another width": (
        {"model.embed_tokens.modules_to_save.default.weight": torch.zeros(1030, 95)},
        r"model.embed_tokens.* is \(1030, 95\), .* Is it the base",
    ),
    "A without B": ({f"{UP}.lora_B.default.weight": None}, "mlp.up_proj.lora_A.default.weight has no partner"),
    "a layer without a pair": (
        {f"{UP}.lora_{ab}.default.weight": None for ab in "AB"},
        r"1 linear layers have no LoRA pair, the first: model.layers.0.mlp.up_proj",
    ),
    "B without A": ({f"{UP}.lora_A.default.weight": None}, "no place.*mlp.up_proj.lora_B"),
    "a pair of another rank": (
        {f"{UP}.lora_A.default.weight": torch.zeros(5, 96)},
        r"mlp.up_proj is \(192, 96\) .* Is it the base",
    ),
    "a pair of vectors": ({f"{UP}.lora_A.default.weight": torch.zeros(4)}, r"\(4,\)"),
    "a pair on no linear layer": (
        {f"model.norm.lora_{ab}.default.weight": torch.zeros(4, 4) for ab in "AB"},
        "model.norm.*no Linear",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_every_tensor_has_its_place(tiny, case):
    change, message = MISFITS[case]
    state = {name: values for name, values in (tiny.load_decoder_state() | change).items() if values is not None}
    with pytest.raises(CheckpointError, match=rf"^here: .*{message}"):
        merge_decoder_state(tiny.load_decoder_base(dtype=torch.float32), state, "here")
