"""Every family of targets from its files to its drafts: what the draft shares with it is the model's own, features are hidden states, both
kinds of drafts take a step, and the exported one of blocks decodes what the target alone would write, as often as offline tau says. One of
chains reads the same features and the same law, so that a family of each kind of layers and of logits shows its way to the end.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

from tests.families import FAMILIES, Family, write_family
from tests.unit.export.test_hf_export import save_checkpoint
from tests.unit.tiny import NEVER, answered, overfit, random_prompt
from torchspec.acceptance.sampling import GREEDY
from torchspec.acceptance.walk import Acceptance
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.decode.batch import plain_together, speculative_together
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import Pair, load_pair
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.errors import UserError
from torchspec.export.hf import export_checkpoint
from torchspec.methods.base import Method, method_class
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.records import Prompt
from torchspec.target.frozen import FrozenTarget
from torchspec.training.stream import pack

LAYERS, DEPTH, B, ANSWER = (1, 3), 6, 4, 16
METHODS = {
    "dflash": DFlashConfig(num_layers=1, block_size=B, num_anchors=64, target_layer_ids=LAYERS),
    "eagle3": Eagle3Config(ttt_length=B - 1, num_anchors=64, target_layer_ids=LAYERS),
}
STEPS = 10  # enough that some drafts are accepted and some are not, so that both ways through the cache are taken
WORKING = [name for name, family in FAMILIES.items() if family.refused is None]
OF_A_KIND = (
    "llama", "gemma2", "granite", "phi3, longrope", "gpt_oss", "deepseek_v3", "qwen3_5_text", "falcon_h1", "gemma4, per layer", "llama4",
)  # fmt: skip
BLOCKS, CHAINS = [(name, "dflash") for name in WORKING], [(name, "eagle3") for name in OF_A_KIND]


class Text:
    """The tokenizer's vocabulary, each token once."""

    def token_counts(self, size: int, supervised: bool = False) -> Tensor:
        return (torch.arange(size) < 102).long()


@dataclass
class Subject:
    """A family's tiny model, loaded once for all that is asked of it."""

    family: Family
    folder: Path

    @cached_property
    def model(self) -> PreTrainedModel:
        """As Transformers alone loads it: the oracle."""
        load = AutoModelForImageTextToText if self.family.wrapped else AutoModelForCausalLM
        return load.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def states(self) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Of one text: hidden_states, the last layer's output before the final norm [L, H], logits [L, V]."""
        kept, layers = [], next(m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == DEPTH)
        hook = layers[-1].register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
        with torch.inference_mode():
            output = self.model(input_ids=self.text[None], use_cache=False, output_hidden_states=True)
        hook.remove()
        return tuple(state[0] for state in output.hidden_states), kept[0].view(len(self.text), -1), output.logits[0]

    @cached_property
    def text(self) -> Tensor:
        return random_prompt(0, 24)

    @cached_property
    def target(self) -> FrozenTarget:
        return FrozenTarget.load(self.folder, torch.float32)

    @cached_property
    def captures(self) -> dict[tuple[int, ...], HFCapture]:
        return {}

    def capture(self, layers: tuple[int, ...]) -> HFCapture:
        if layers not in self.captures:
            self.captures[layers] = HFCapture(CaptureSpec(self.folder, layers, torch.float32, target=self.target))
        return self.captures[layers]

    @cached_property
    def answers(self) -> list[Prompt]:
        """What it writes by itself: the first is learned by each draft, the second by none."""
        return [answered(self.capture((*LAYERS, DEPTH - 1)), random_prompt(seed, 12), ANSWER) for seed in (1, 2)]


@pytest.fixture(params=WORKING, scope="module")
def subject(request, tmp_path_factory) -> Subject:
    return Subject(FAMILIES[request.param], write_family(FAMILIES[request.param], tmp_path_factory.mktemp("family") / "target"))


def method_for(name: str, subject: Subject) -> Method:
    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    return method_class(name).for_run(METHODS[name], subject.target, tokenizer, Text())


@pytest.fixture(scope="module")
def pair(request, subject, tmp_path_factory) -> Pair:
    """A draft that has learned a little of one answer, exported and loaded again."""
    method, root = method_for(request.param, subject), tmp_path_factory.mktemp("draft")
    model, capture = method.build(torch.Generator().manual_seed(0)), subject.capture(method.layer_ids)
    capture.verify([Prompt(0, subject.text, torch.arange(24) > 5)])
    sample = capture.capture(subject.answers[0])
    check_step(method, model, sample)
    overfit(method, model, [sample], STEPS)
    draft = export_checkpoint(save_checkpoint(root / "checkpoints", method, model, "float32"), root / "draft")
    return load_pair(draft, str(subject.folder), "float32", "cpu", False)


def check_step(method, model, sample) -> None:
    loss, weight, _ = method.loss(model, pack([sample], epoch=0), seed=0)
    (loss / weight).backward()
    assert torch.isfinite(loss) and weight > 0
    for name, value in model.named_parameters():
        assert torch.isfinite(value.grad).all() and value.grad.any(), name


@torch.inference_mode()
def test_log_probabilities_are_the_models_own(subject):
    _, last, logits = subject.states
    assert len(set(logits.argmax(-1).tolist())) > 3  # a model that always says the same would prove little
    ours = subject.target.logits(last).log_softmax(-1)
    torch.testing.assert_close(ours, logits.log_softmax(-1), rtol=0, atol=1e-4)


def test_features_are_hidden_states(subject):
    states, last, _ = subject.states
    features = subject.capture((*LAYERS, DEPTH - 1)).capture(Prompt(0, subject.text, torch.arange(24) > 5))
    expected = torch.cat([*(states[z + 1] for z in LAYERS), last], dim=-1)
    torch.testing.assert_close(features.context, expected, rtol=1e-4, atol=1e-4)


def test_a_draft_of_chains_takes_a_step(subject):
    method = method_for("eagle3", subject)
    check_step(method, method.build(torch.Generator().manual_seed(0)), subject.capture(method.layer_ids).capture(subject.answers[0]))


@pytest.mark.parametrize(("subject", "pair"), [*BLOCKS, *CHAINS], indirect=True)
def test_the_exported_draft_decodes_what_the_target_writes_as_often_as_offline_tau_says(subject, pair):
    """An answer that it has learned and one that it has not, so that drafts are accepted here and rejected there."""
    total = Acceptance(B)
    for answer in subject.answers:
        prompt, text = answer.ids[:-ANSWER], answer.ids[-ANSWER:].tolist()
        decoded = speculative_decode(pair.target, pair.method.drafter(pair.model), prompt, ANSWER, NEVER)
        assert decoded.ids == text
        total.add_answer(decoded.accepted, ANSWER)
    assert 0 < sum(total.accepted) < sum(total.offered)
    assert torch.equal(evaluate_offline(pair.method, pair.model, pair.target, subject.answers).counts(), total.counts())


@pytest.mark.parametrize(("subject", "pair"), BLOCKS, indirect=True)
def test_decoded_together_or_refused(subject, pair):
    prompts = [random_prompt(2, 9), random_prompt(3, 14)]
    if not subject.family.together:
        with pytest.raises(UserError, match="--batch-size"):
            plain_together(pair.target, prompts, 8, NEVER, [GREEDY] * 2)
        return
    alone = [plain_decode(pair.target, prompt, 8, NEVER).ids for prompt in prompts]
    drafters = [pair.method.drafter(pair.model) for _ in prompts]
    assert [answer.ids for answer in plain_together(pair.target, prompts, 8, NEVER, [GREEDY] * 2)] == alone
    assert [answer.ids for answer in speculative_together(pair.target, drafters, prompts, 8, NEVER, [GREEDY] * 2)] == alone


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(WORKING)))
def test_what_cannot_be_a_target_is_refused_without_its_layers(name, tmp_path):
    """Before any model is loaded: there is none here, its layers have no weights."""
    file = write_family(FAMILIES[name], tmp_path / "target") / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "layers." not in key}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=FAMILIES[name].refused) as error:
        FrozenTarget.load(file.parent, torch.float32)
    assert "\n" not in str(error.value)
