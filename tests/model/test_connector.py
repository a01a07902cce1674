import pytest
import torch

from pisco_index import Memory
from pisco_index.errors import CheckpointError
from pisco_index.model.connector import Connector, digest_tensors


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (4, 5), "2.bias": (4,)}
    # Values that bfloat16 represents exactly, so that both dtypes hold the same.
    return {name: torch.randn(shape, generator=generator).bfloat16().float() for name, shape in shapes.items()}


@pytest.fixture
def connector(state):
    return Connector.from_state(state, "connector.pt")


def test_it_is_linear_relu_linear(connector, state):
    hidden = torch.randn(7, 3)
    inner = (hidden @ state["0.weight"].T + state["0.bias"]).clamp(min=0)
    torch.testing.assert_close(connector(hidden), inner @ state["2.weight"].T + state["2.bias"])
    assert (connector.in_dim, connector.mlp_dim, connector.out_dim) == (3, 5, 4)


def test_its_tensors_come_back_under_their_names(connector, state):
    assert connector.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in connector.state().items())


def test_it_is_frozen(connector):
    assert not connector.training
    assert not any(parameter.requires_grad for parameter in connector.parameters())


def test_hidden_memory_is_connected_once(connector):
    memory = Memory(torch.randn(6, 3), (2, 0, 4), "hidden", connector.digest, ("a", "b", "c"))
    connected = connector.connect(memory)
    assert torch.equal(connected.values, connector(memory.values))
    assert (connected.stage, connected.lengths, connected.doc_ids) == ("embedding", (2, 0, 4), ("a", "b", "c"))
    assert connector.connect(connected) is connected


def test_it_computes_in_its_own_dtype(connector):
    memory = Memory(torch.randn(2, 3, dtype=torch.bfloat16), (2,), "hidden", connector.digest)
    assert connector.connect(memory).values.dtype == torch.float32


def test_the_digest_does_not_depend_on_the_stored_dtype(state, connector):
    stored = {name: tensor.bfloat16() for name, tensor in reversed(state.items())}
    assert Connector.from_state(stored, "").digest == connector.digest == digest_tensors(state)


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_the_digest_changes_with_any_value(state, connector, name):
    state[name].view(-1)[-1] += 1
    assert Connector.from_state(state, "").digest != connector.digest


def test_the_digest_changes_with_shape(state):
    assert digest_tensors({"a": torch.zeros(2, 3)}) != digest_tensors({"a": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"2.bias": None}, "tensors"),
        ({"4.weight": torch.zeros(4, 4)}, "4.weight"),
        ({"0.bias": torch.zeros(4)}, "do not fit together"),
        ({"2.weight": torch.zeros(4, 6)}, "do not fit together"),
        ({"2.bias": torch.zeros(1, 4)}, "do not fit together"),
        ({"0.weight": torch.zeros(15)}, "do not fit together"),
        ({"0.bias": torch.full((5,), float("nan"))}, "0.bias has values that are not finite"),
        ({"2.bias": torch.zeros(4, dtype=torch.int64)}, "2.bias has values that are not finite floating-point numbers"),
    ],
)
def test_other_tensors_are_refused(state, change, message):
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=rf"^folder/connector.pt: .*{message}"):
        Connector.from_state(changed, "folder/connector.pt")
