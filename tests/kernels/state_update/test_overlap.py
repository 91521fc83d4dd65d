"""States that are written in place: a state that overlaps itself is refused, what lies in a state is read before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from scanlab.runtime import ops as mixer

DIM, WIDTH = 3, 4


def convolve(state: Tensor, x: Tensor) -> Tensor:
    return mixer.causal_conv1d_update(x, state, torch.ones(DIM, WIDTH))


def update(state: Tensor, x: Tensor) -> Tensor:
    B = C = torch.ones(len(x), WIDTH)
    return mixer.selective_state_update(state, x, torch.ones_like(x), -torch.ones(DIM, WIDTH), B, C)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("step", [convolve, update])
@pytest.mark.parametrize(
    "overlapping",
    [
        lambda memory: memory[: DIM * WIDTH].view(1, DIM, WIDTH).expand(2, -1, -1),
        lambda memory: memory.as_strided((2, DIM, WIDTH), (6, 4, 1)),
        lambda memory: memory.as_strided((2, DIM, WIDTH), (12, 2, 1)),
    ],
)
def test_a_state_that_overlaps_itself_is_refused(
    step: Callable[[Tensor, Tensor], Tensor], overlapping: Callable[[Tensor], Tensor]
) -> None:
    memory = torch.randn(2 * DIM * WIDTH)
    before = memory.clone()
    with pytest.raises(ValueError, match="overlap"):
        step(overlapping(memory), torch.randn(2, DIM))
    assert torch.equal(memory, before)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("step", [convolve, update])
def test_states_between_those_of_another_are_taken(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    cache, x = torch.randn(2, DIM, 2 * WIDTH), torch.randn(2, DIM)
    state, other = cache[..., :WIDTH].clone(), cache[..., WIDTH:].clone()
    want = step(state, x)
    assert torch.equal(step(cache[..., :WIDTH], x), want)
    assert torch.equal(cache[..., :WIDTH], state)
    assert torch.equal(cache[..., WIDTH:], other)


@pytest.mark.usefixtures("native")
def test_an_input_inside_of_the_state_of_a_convolution_is_read_first() -> None:
    state, weight = torch.randn(2, DIM, WIDTH), torch.randn(DIM, WIDTH)
    other = state.clone()
    x, copy = state[:, :, 1], other[:, :, 1].clone()
    assert torch.equal(mixer.causal_conv1d_update(x, state, weight), mixer.causal_conv1d_update(copy, other, weight))
    assert torch.equal(state, other)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_an_argument_inside_of_the_state_is_read_first(name: str) -> None:
    batch, dim, states = 4, 80, 16
    inside = {
        "x": lambda h: h[:, :, 0],
        "dt": lambda h: h[:, :, 1],
        "z": lambda h: h[:, :, 2],
        "A": lambda h: h[1],
        "B": lambda h: h[:, 3, :],
        "C": lambda h: h[:, 4, :],
        "D": lambda h: h[0, :, 5],
        "dt_bias": lambda h: h[3, :, 6],
    }
    state = torch.rand(batch, dim, states)
    given = {key: make(torch.rand(batch, dim, states)).contiguous() for key, make in inside.items()}
    other, copies = state.clone(), given | {name: inside[name](state).clone()}
    got = mixer.selective_state_update(state, **(given | {name: inside[name](state)}))
    assert torch.equal(got, mixer.selective_state_update(other, **copies))
    assert torch.equal(state, other)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("which", ["conv_state", "state"])
def test_a_step_of_a_mixer_that_raises_leaves_both_states(which: str) -> None:
    dim, width, rank, states = 16, 4, 3, 8
    given = {
        "projected": torch.randn(2, 2 * dim),
        "conv_state": torch.randn(2, dim, width),
        "state": torch.randn(2, dim, states),
        "conv_weight": torch.randn(dim, width),
        "conv_bias": None,
        "x_weight": torch.randn(rank + 2 * states, dim),
        "dt_weight": torch.randn(dim, rank),
        "dt_bias": None,
        "A_log": torch.randn(dim, states),
        "D": torch.randn(dim),
    }
    given[which] = given[which][:1].expand(2, -1, -1)
    before = {name: given[name].clone() for name in ("conv_state", "state")}
    with pytest.raises(ValueError, match="overlap"):
        mixer.mixer_step(**given)
    assert all(torch.equal(given[name], tensor) for name, tensor in before.items())


@pytest.mark.usefixtures("native")
def test_one_memory_for_both_states_of_a_mixer_is_refused() -> None:
    dim, states = 16, 4
    memory = torch.randn(2, dim, states)
    before = memory.clone()
    with pytest.raises(ValueError, match="conv_state and state overlap"):
        mixer.mixer_step(
            torch.randn(2, 2 * dim), memory, memory, torch.randn(dim, 4), None, torch.randn(2 + 2 * states, dim),
            torch.randn(dim, 2), None, torch.randn(dim, states), torch.randn(dim),
        )  # fmt: skip
    assert torch.equal(memory, before)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("serving", [nullcontext, mixer.in_torch])
@pytest.mark.parametrize("op", ["convolution", "scan"])
def test_two_sequences_of_one_row_are_refused(op: str, serving: Callable[[], AbstractContextManager[object]]) -> None:
    state, x = torch.randn(4, DIM, WIDTH), torch.randn(3, DIM)
    before = state.clone()

    def step(*rows: int) -> Tensor:
        indices = torch.tensor(rows, dtype=torch.int32)
        if op == "convolution":
            return mixer.causal_conv1d_update(x, state, torch.ones(DIM, WIDTH), conv_state_indices=indices)
        B = C = torch.ones(3, WIDTH)
        A = -torch.ones(DIM, WIDTH)
        return mixer.selective_state_update(state, x, torch.ones_like(x), A, B, C, state_batch_indices=indices)

    with serving(), pytest.raises(ValueError, match="-1 to padding"):
        step(2, 0, 2)
    assert torch.equal(state, before)
    with serving():
        assert step(-1, 0, -1)[0].eq(0).all(), "padding may come as often as it likes"
