"""The truth checks at the capture border, on the real target in bfloat16: honest features pass, every planted bug is named."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.unit.capture.conftest import REAL_LAYERS, TOKENS
from tests.unit.tiny import HIDDEN, LAYERS, random_prompt
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import CHECK_EVERY, NextTokenCheck, capture_checks, check_features, check_law, compare_features
from torchspec.errors import ContractError, EngineMismatch
from torchspec.nn.logits import LogitLaw
from torchspec.records import Features, Prompt
from torchspec.target.frozen import FrozenTarget


@pytest.fixture(scope="module")
def last(real_run) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of the last layer before the final norm [L, H_t], and the engine's own logits [L, V]."""
    return real_run[1:]


@pytest.fixture(scope="module")
def states(real_states, last) -> tuple[torch.Tensor, ...]:
    """What every planted bug is compared with, computed once: `check_features` runs the target for them, which takes a second."""
    return (*real_states[:-1], last[0])


@pytest.fixture
def planted(real_prompt, states):
    """Features of some layers under the names of others."""

    def planted(layers: tuple[int, ...], labels: tuple[int, ...], source=states) -> Features:
        return Features(real_prompt, torch.cat([source[z + 1] for z in layers], dim=-1), labels, "planted")

    return planted


def test_the_honest_target_passes_every_check(real_oracle, real_target, real_prompt):
    capture_checks(real_oracle, real_target, [real_prompt])


def test_other_rounding_is_no_difference(planted, states):
    """One more rounding to bfloat16 moves a value by up to 2^-8 of itself, either way."""
    g = torch.Generator().manual_seed(0)
    honest = planted(REAL_LAYERS, REAL_LAYERS)
    noise = 1 + (torch.rand(honest.context.shape, generator=g) * 2 - 1) * 2**-7
    compare_features(replace(honest, context=(honest.context.float() * noise).to(torch.bfloat16)), states)


@pytest.mark.parametrize("z", range(29))
def test_a_layer_id_that_is_off_by_one_is_named_at_every_layer(planted, states, z):
    """Captured z + 1, called z: what a backend does that counts "layers already run" where z-ids are meant."""
    with pytest.raises(ContractError, match=f"layer {z} .*they are the output of layer {z + 1}, so the layer-id convention is off"):
        compare_features(planted((z + 1,), (z,)), states)


def test_a_shift_is_named_where_a_layer_changes_less_than_roundings_may(planted):
    """As in deep targets: a layer that adds a twentieth is within ROUNDING of the one before it."""
    g = torch.Generator().manual_seed(0)
    start, added = (torch.randn(TOKENS, 16, generator=g) for _ in range(2))
    near = tuple((start + 0.05 * z * added).to(torch.bfloat16) for z in range(5))
    compare_features(planted((1, 3), (1, 3), near), near)
    with pytest.raises(ContractError, match="layer 1 .*they are the output of layer 2, so the layer-id convention is off"):
        compare_features(planted((2, 3), (1, 3), near), near)


def test_the_embedding_called_layer_zero_is_named(planted, states):
    with pytest.raises(ContractError, match="layer 0 .*they are the output of layer -1"):
        compare_features(planted((-1,), (0,)), states)


@pytest.mark.parametrize("row", [0, 1, 40, TOKENS - 1])
@pytest.mark.parametrize("z", [1, 15, 27])
def test_a_single_stale_row_is_noticed(planted, states, z, row):
    """A row of another position, as a prefix cache or a reused buffer leaves behind."""
    honest = planted((z,), (z,))
    context = honest.context.clone()
    context[row] = honest.context[(row + 7) % TOKENS]
    with pytest.raises(ContractError, match=f"features of layer {z} captured by planted differ"):
        compare_features(replace(honest, context=context), states)


def test_rows_that_are_shifted_by_one_token_are_noticed(planted, states):
    honest = planted((1, 15), (1, 15))
    with pytest.raises(ContractError, match="no layer's output matches"):
        compare_features(replace(honest, context=honest.context.roll(1, dims=0)), states)


def test_the_last_layer_is_compared_before_the_final_norm(real_oracle, real_states, planted, states):
    """EAGLE-3 captures it; HF's own hidden_states hold it behind the norm, and so does a backend that takes it too late."""
    check_features(planted((29,), (29,)), real_oracle)
    with pytest.raises(ContractError, match="features of layer 29 captured by planted differ"):
        compare_features(planted((29,), (29,), real_states), states)


def test_swapped_column_blocks_are_noticed_and_named(planted, states):
    with pytest.raises(ContractError, match="features of layer 1 .*they are the output of layer 8"):
        compare_features(planted((8, 1), (1, 8)), states)


def test_final_norm_and_head_over_the_last_state_give_the_targets_own_logits(real_target, last):
    check_law(real_target, *last, "transformers")
    assert torch.equal(real_target.logits(last[0]), last[1])


def with_norm(target: FrozenTarget, change) -> FrozenTarget:
    norm = deepcopy(target.norm)
    norm.weight.copy_(change(norm.weight))
    return replace(target, norm=norm)


PLANTED = {
    "the final norm applied twice": lambda t, last, states: (t, states[-1]),
    "the state of the layer below": lambda t, last, states: (t, states[-2]),
    "a norm without its weight": lambda t, last, states: (with_norm(t, torch.ones_like), last),
    "another head": lambda t, last, states: (replace(t, head=t.head.roll(1, dims=0)), last),
    "states of the token before": lambda t, last, states: (t, last.roll(1, dims=0)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_states_norms_and_heads_do_not_give_the_targets_tokens(real_target, real_states, last, name):
    target, state = PLANTED[name](real_target, last[0], real_states)
    with pytest.raises(ContractError, match=r"differ from vllm's own by .*; the likely cause is a state .* \d+% of the most likely tokens"):
        check_law(target, state, last[1], "vllm")


LAWS = {  # a forgotten scale of Granite's, a slight one, Gemma's cap, a slip of a norm's weight: no greedy token shows the first three
    "a scale of the logits: the engine's are 0.125 times ours": (lambda t: t, lambda x: x / 8),
    "a scale of the logits: the engine's are 1.1 times ours": (lambda t: replace(t, law=LogitLaw(1 / 1.1)), lambda x: x),
    "a cap of the logits, or a final norm": (lambda t: t, lambda x: 30 * torch.tanh(x / 30)),
    "a norm or head that is not the target's": (lambda t: with_norm(t, lambda w: w * torch.linspace(0.9, 1.1, len(w))), lambda x: x),
}


@pytest.mark.parametrize("cause", LAWS)
def test_a_planted_scale_cap_or_norm_is_named(real_target, last, cause):
    ours, theirs = LAWS[cause]
    with pytest.raises(ContractError, match=f"the likely cause is .*{cause}"):
        check_law(ours(real_target), last[0], theirs(last[1]), "vllm")


# --- a record of features, whatever the backend


def honest(tiny_oracle) -> Features:
    ids = random_prompt(0, 12)
    return tiny_oracle.capture(Prompt(4, ids, torch.arange(12) > 5))


def check_of(folder) -> NextTokenCheck:
    return NextTokenCheck(CaptureSpec(folder, REAL_LAYERS, torch.bfloat16), "engine")


def test_an_engine_is_stopped_when_its_last_state_is_the_layer_belows_or_normed(target_folder, real_states, last):
    """One comparison per prompt, as with engines that give one next token: 32 of them decide."""
    state, tokens = last[0][:32], last[1][:32].argmax(-1).tolist()
    honest = check_of(target_folder)
    honest.compare(list(state), tokens)
    honest.conclude()
    normed = real_states[30][:32]  # hidden_states' last entry has passed the final norm
    for planted in (real_states[29][:32], normed):
        check = check_of(target_folder)
        check.compare(list(planted), tokens)
        with pytest.raises(EngineMismatch, match="engine's own next token for .* of the last 32 prompts compared; the likely cause"):
            check.conclude()


class Counting(FrozenTarget):
    products = 0

    def logits(self, last_state):
        Counting.products += len(last_state)
        return super().logits(last_state)


@pytest.fixture
def watched(tiny_folder, tiny_target) -> tuple[NextTokenCheck, list[torch.Tensor], list[int]]:
    """A check that has seen the start of a run, the last states of a micro-batch of four, and the engine's tokens for them."""
    states = list(torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)))
    tokens = tiny_target.logits(torch.stack(states)).argmax(-1).tolist()
    check = NextTokenCheck(CaptureSpec(tiny_folder, LAYERS, torch.float32, target=Counting(**vars(tiny_target))), "engine")
    check.compare(states, tokens)
    check.conclude()
    Counting.products = 0
    return check, states, tokens


def test_a_thousand_prompts_cost_one_product_with_the_head(watched):
    check, states, tokens = watched
    for _ in range(3 * CHECK_EVERY // 4):
        check.watch(states, tokens)
    assert Counting.products == 3


def test_an_engine_that_goes_wrong_is_stopped_soon_after_the_next_check(watched):
    """The first disagreement makes every micro-batch show one prompt, until 32 have been compared."""
    check, states, tokens = watched
    wrong = [token + 1 for token in tokens]
    with pytest.raises(EngineMismatch, match="the likely cause is a layer id that is off by one"):
        for _ in range(CHECK_EVERY // 4 + 32):
            check.watch(states, wrong)


def test_a_tie_is_forgotten_when_the_next_prompt_agrees(watched):
    check, states, tokens = watched
    for micro_batch in range(2 * CHECK_EVERY // 4):
        tie = micro_batch == CHECK_EVERY // 4 - 1
        check.watch(states, [token + tie for token in tokens])
    assert Counting.products == 3 and list(check.recent) == [True] * 4 + [False, True, True]


def test_honest_features_pass_and_are_returned(tiny_oracle):
    features = honest(tiny_oracle)
    assert features.check() is features


@pytest.mark.parametrize("rows", [0, 8, 11, 13, 24])
def test_another_number_of_rows_than_tokens_is_refused(tiny_oracle, rows):
    features = honest(tiny_oracle)
    with pytest.raises(ContractError, match=f"sample 4 captured by transformers.*: {rows} feature rows for 12 tokens"):
        replace(features, context=features.context.repeat(2, 1)[:rows]).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (11, 63), (5, 31)])
def test_one_number_that_is_not_finite_is_refused(tiny_oracle, place, value):
    features = honest(tiny_oracle)
    features.context[place] = value
    with pytest.raises(ContractError, match="sample 4 .*NaN or infinity"):
        features.check()


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("row", [0, 11])
def test_a_row_that_one_layer_left_at_zero_is_named(tiny_oracle, row, k):
    features = honest(tiny_oracle)
    features.context[row, 32 * k : 32 * (k + 1)] = 0
    with pytest.raises(ContractError, match=f"sample 4 .*token {row} at layer {LAYERS[k]} are all zero"):
        features.check()
