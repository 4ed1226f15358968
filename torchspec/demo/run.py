"""`torchspec demo`: a real language model gets a draft, on whatever machine this is."""

from importlib.resources import as_file, files
from pathlib import Path

from torchspec.config import load_config
from torchspec.console import console
from torchspec.decode.pair import load_pair
from torchspec.errors import ContractError
from torchspec.evaluate.run import Settings, evaluate_draft
from torchspec.export.hf import export_checkpoint
from torchspec.report.verdict import verdict
from torchspec.target.fetch import fetch_smollm2
from torchspec.training import checkpoint, checkpoints
from torchspec.training.loop import train

DECODED_PROMPTS, MAX_NEW_TOKENS = 12, 96


def run_demo(out: Path, method: str) -> None:
    """method: eagle3 or dflash, of which there is a recipe."""
    console.rule("1/4  the target")
    target = fetch_smollm2(out / "targets" / "smollm2-135m-instruct")
    console.print(f"SmolLM2-135M-Instruct in {target}")
    with as_file(files("torchspec.demo")) as data:
        folder = out / "demo"
        config = load_config(
            str(data / f"smollm2_{method}.yaml"),
            [
                f"output_dir={folder}",
                f"model.target_model_path={target}",
                f"dataset.train_data_path={data / 'train.jsonl'}",
                f"dataset.eval_data_path={data / 'heldout.jsonl'}",
            ],
        )
        console.rule("2/4  training the draft on what the target itself wrote")
        state = train(config)
        console.rule("3/4  export, and read back")
        draft = export_checkpoint(checkpoints.best(config.checkpoints), folder / "draft")
        console.print(f"{draft}: best checkpoint, step {state.best_step}")
        console.rule("4/4  held-out prompts: offline τ, and a real decode beside the plain one")
        pair = load_pair(draft, str(target), config.model.dtype, config.model.device, False)
        metadata = {"config": config.model_dump(mode="json"), "seed": config.training.seed}
        settings = Settings(DECODED_PROMPTS, MAX_NEW_TOKENS)
        results = evaluate_draft(pair, {"held-out": config.dataset.eval_data_path}, folder, settings, metadata)
    _check_export_is_what_was_trained(results, state)
    _last_words(folder, results, state)


def _check_export_is_what_was_trained(results: dict, state: checkpoint.TrainState) -> None:
    """The folder's tau is the trainer's, to the last count: same weights, same prompts, same arithmetic."""
    if results["offline"]["tau"] != state.best_tau:
        raise ContractError(
            f"the exported draft reaches τ {results['offline']['tau']}, the trainer measured {state.best_tau}; the export changed the draft"
        )


def _last_words(folder: Path, results: dict, state: checkpoint.TrainState) -> None:
    console.rule("done")
    console.print(
        f"τ {results['offline']['tau']:.2f} on {results['offline']['prompts']} held-out conversations "
        f"after {state.seconds / 60:.1f} minutes of training; "
        "the exported folder reaches exactly the trainer's number.\n"
        f"{verdict(results)}\n"
        f"Look at {folder / 'report.html'}; the draft that servers load is {folder / 'draft'}.\n"
        "Next, Qwen3-8B on one GPU:\n"
        "  torchspec regenerate prompts.jsonl -t Qwen/Qwen3-8B --thinking off -o train.jsonl\n"
        "  torchspec train -c configs/hf_qwen3_8b_dflash.yaml dataset.train_data_path=train.jsonl",
        markup=False,
    )
