"""README.md of an exported draft: what the hub reads, what the draft was taught, how well it drafts, and how it is served."""

from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader

from torchspec.report.results import with_interval

NAMES = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "transformers": "Transformers"}
CARD = "README.md"


def card(draft_tokens: int, provenance: dict, evaluation: dict | None, commands: dict[str, str]) -> str:
    """evaluation: the run's own, of this checkpoint. commands: engine -> the line that serves the draft."""
    method, run, data = provenance["method"], provenance["run"], provenance["data"]
    target = run["model"]["target_model_path"]
    base = target if is_hub_id(target) else Path(target).name
    facts = {"method": method, "draft_tokens": draft_tokens, "data_fingerprint": data["fingerprint"]}
    if evaluation is not None:
        facts |= {"tau": evaluation["tau"], "protocol": protocol(run, data)}
        facts |= {"tau_interval_95": evaluation["tau_interval"]} if evaluation["tau_interval"] else {}
    metadata = ModelCardData(
        base_model=base,
        license="other",
        license_name="to-be-filled-in",
        pipeline_tag="text-generation",
        tags=["speculative-decoding", "draft-model", method],
        torchspec=facts,
    )
    page = Environment(loader=PackageLoader("torchspec.export", "."), keep_trailing_newline=True).get_template("card.md.jinja")
    return page.render(
        metadata=metadata.to_yaml(),
        base=base,
        base_is_a_folder=not is_hub_id(target),
        method=method,
        draft_tokens=draft_tokens,
        evaluation=evaluation,
        tau=evaluation and with_interval(evaluation["tau"], evaluation["tau_interval"]),
        protocol=protocol(run, data),
        commands={NAMES[engine]: line for engine, line in commands.items()},
        state=provenance["state"],
        version=provenance["torchspec"],
        data=data,
        thinking=thinking(data),
    )


def protocol(run: dict, data: dict) -> str:
    most, dtype = run["evaluation"]["max_samples"], run["model"]["dtype"]
    return f"greedy, offline, at most {most} held-out conversations of {data['held_out']}, {dtype}, {thinking(data)}"


def thinking(data: dict) -> str:
    return "thinking as the template has it" if data["thinking"] is None else f"thinking {'on' if data['thinking'] else 'off'}"


def is_hub_id(target: str) -> bool:
    """Of a target as a recipe names it: the rule by which it was fetched."""
    return not Path(target).exists() and not target.startswith((".", "/", "~")) and target.count("/") == 1
