"""Every recipe in configs/ and benchmarks/ loads, and its plan can be printed for a target and data that are here."""

from pathlib import Path

import pytest

from tests.tiny import write_chats, write_tiny_target
from torchspec.config import load_config
from torchspec.console import console
from torchspec.errors import UserError
from torchspec.launch.plan import print_plan

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "benchmarks").glob("*.yaml")])


@pytest.fixture(scope="module")
def here(tmp_path_factory, target_folder) -> list[str]:
    folder = tmp_path_factory.mktemp("recipes")
    target = write_tiny_target(folder / "target", target_folder)
    return [
        f"output_dir={folder / 'run'}", f"model.target_model_path={target}", "draft.target_layer_ids=[1,3]",
        f"dataset.train_data_path={write_chats(folder / 'train.jsonl', 200)}", "dataset.eval_data_path=null", "dataset.eval_share=0.1",
        "dataset.thinking=null",
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_the_recipe_loads_and_plans(recipe, here):
    pruned = ["draft.draft_vocab_size=1000"] if "draft_vocab_size" in recipe.read_text() else []  # the target here has 4,096 tokens
    config = load_config(str(recipe), [*here, *pruned])
    with console.capture() as printed:
        print_plan(config)
    text = printed.get()
    assert f"of {config.training.num_ranks} x {config.training.draft_accumulation_steps} micro-batches" in text
    inference = config.inference
    if inference.num_workers == 0:
        assert "one process" in text
        return
    layers = 3 if config.draft.method == "eagle3" else 2  # EAGLE-3 learns from the last layer as well
    bytes_per_token = layers * (64 + 4) if inference.transfer_dtype == "fp8" else layers * 64 * 2  # of width 64, a scale each
    assert f"{inference.num_workers} {inference.inference_engine_type} capture workers" in text
    assert f"{bytes_per_token:,} bytes per token" in text


ANOTHER = "# Another method: "
TARGETS = {
    "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3.5-9B", "openai/gpt-oss-20b", "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-3-12b-it",
}  # fmt: skip


def test_every_target_has_a_recipe_with_reasons_and_its_line_for_another_method_holds():
    """A key that is not a matter of taste says why it has its value."""
    found = {}
    for recipe in RECIPES:
        another = [line for line in recipe.read_text().splitlines() if line.startswith(ANOTHER)]
        if another:
            config, other = load_config(str(recipe), []), load_config(str(recipe), another[0].removeprefix(ANOTHER).split())
            assert other.draft.method != config.draft.method and other.draft.num_anchors == config.draft.num_anchors
            found[config.model.target_model_path] = recipe
    assert found.keys() == TARGETS
    for recipe in found.values():
        for key in ("num_anchors", "max_length", "draft_accumulation_steps", "num_epochs", "learning_rate"):
            (line,) = [line for line in recipe.read_text().splitlines() if line.strip().startswith(f"{key}:")]
            assert " # " in line, f"{recipe.name}: {line}"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_the_recipe_holds_text_out(recipe):
    assert load_config(str(recipe), []).dataset.holds_out


def test_a_segment_that_cannot_hold_what_is_under_way_is_refused(here):
    mooncake = ["inference.transfer=mooncake", "inference.mooncake.segment_gib=0.00001"]
    config = load_config(str(ROOT / "configs" / "hf_smollm2_dflash.yaml"), [*here, *mooncake])
    with pytest.raises(UserError, match="segment_gib=1e-05 cannot hold"):
        print_plan(config)
