"""python -m scripts.write_targets: docs/targets.md from the catalogue tests/families and docs/engines.json. A test compares the two."""

import json
from pathlib import Path

from tests.families import GROUPS, REMOTE, Family

DOCS = Path(__file__).parents[1] / "docs"
FILE, ENGINES = DOCS / "targets.md", json.loads((DOCS / "engines.json").read_text())
HEAD = """# Targets

Written by `python -m scripts.write_targets` from the catalogue in `tests/families/` and from `docs/engines.json`; edit those.

A target is a decoder of text that Transformers runs by its own code. Which families are tested as such stands below, with a few public
models of each. Of every family a tiny random model with all its kinds of layers goes through `tests/unit/test_families.py`: the
log-probabilities of the frozen final norm and head are the model's own within 1e-4 in float32; captured features are its hidden states;
each method takes a training step; the draft is exported and loaded again; the text that it helps to decode is what the target writes alone,
and offline τ is that decoding's τ to the last count. That shows that nothing is computed wrongly, and nothing about how well a draft of a
real model learns.

| column | says |
|---|---|
| family | `model_type` of config.json, and a variant where one matters |
| here | trained, evaluated, decoded and exported with `inference_engine_type: hf`; or how it is refused before a model loads |
| together | `torchspec eval --batch-size` above 1; it needs full attention in every layer, and is refused in one sentence elsewhere |
| vLLM | gives the hidden states for capture (`vllm`), and serves DFlash and EAGLE-3, which need the same interface (`SupportsEagle3`) |
| SGLang captures | `sglang`: it has one of its two methods to name layers |
| SGLang serves | the methods whose drafts it serves: it has `set_dflash_layers_to_capture`, `set_eagle3_layers_to_capture` |
| llama.cpp | serves DFlash and EAGLE-3 drafts: its graph keeps the inputs of layers |

`as is` in the column of vLLM: through its Transformers backend. A dash: the engine of that version does not run the architecture.

**The columns of engines are read from sources, not run**: vLLM {vllm}, SGLang {sglang}, llama.cpp {llama.cpp}, by
`scripts/read_engines.py`. What runs in real engines is what `make interop` runs there: small Llama targets. A class with the interface may
still fail with some checkpoint, device or parallelism; the checks at the start of a capture, and `torchspec eval --mode`, say so.
"""
OWN_CODE = """
## Models with code of their own

Transformers has no class for these: they run by code that comes with the checkpoint, if at all, with `model.trust_remote_code`. Such code
is fetched, changes without notice, and is often written for older releases of Transformers, so nothing is tested and nothing promised.

| `model_type` | public models |
|---|---|
"""
IMAGES = """
## Images

Models that also see are targets for their text: loaded by their own class, the draft learns from and speaks to the text model alone. A row
with images, video or sound is refused by name, counted and listed ([data.md](data.md)), since only its token ids would be captured. A draft
therefore never learned from a conversation with images, whatever a server lets it draft there. What is missing for them: pixels beside
the ids in `Prompt`, and the processor that writes as many placeholders as the vision tower gives states; rotary positions of three axes
in capture, in the draft and in its cache, where a text has one; an evaluation whose prompts carry images.
"""
QUANTISED = """
## Quantised checkpoints

Layers may be quantised; embedding, final norm and head are read as they are stored and must be in 16 or 32 bits, as published checkpoints
keep them: one that is quantised is refused by name. FP8 in blocks is tested with a tiny model. Others (compressed-tensors, MXFP4 of gpt-
oss) are loaded by Transformers with the library that they ask for, or by the engine that captures; the check at the start of a run
compares their log-probabilities too, but none is tested here. A quantised target computes in bfloat16: `model.dtype=float32` is refused.
"""
COLUMNS = ("family", "public models", "here", "together", "vLLM", "SGLang captures", "SGLang serves", "llama.cpp", "notes")


def document() -> str:
    versions = {name: engine["version"] for name, engine in ENGINES.items()}
    head = HEAD
    for name, version in versions.items():
        head = head.replace(f"{{{name}}}", version)
    tables = [f"## {title}\n\n{_table(families)}" for title, families in GROUPS.items()]
    remote = "".join(f"{_row((f'`{name}`', models))}\n" for name, models in REMOTE.items())
    return "\n".join([head, *tables]) + OWN_CODE + remote + IMAGES + QUANTISED


def _table(families: dict[str, Family]) -> str:
    lines = [_row(COLUMNS), "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *(_row((f"`{name}`", family.examples, *_cells(family))) for name, family in families.items())]) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(family: Family) -> tuple[str, ...]:
    here = "yes" if family.refused is None else f"refused: {family.refused}"
    together = "yes" if family.together and family.refused is None else "no"
    return here, together, _vllm(family), *_sglang(family), _llama_cpp(family), "; ".join(family.notes)


def _vllm(family: Family) -> str:
    found = ENGINES["vllm"]["architectures"].get(family.architecture)
    if found is None:
        return "–"
    return "no" if not found["states"] else "as is" if found["model"] == "transformers" else "yes"


def _sglang(family: Family) -> tuple[str, str]:
    found = ENGINES["sglang"]["architectures"].get(family.architecture)
    if found is None:
        return "–", "–"
    served = [title for title, key in (("DFlash", "dflash"), ("EAGLE-3", "eagle3")) if found[key]]
    return "yes" if served else "no", ", ".join(served) or "no"


def _llama_cpp(family: Family) -> str:
    found = ENGINES["llama.cpp"]["architectures"].get(family.architecture)
    return "–" if found is None else "yes" if found["states"] else "no"


if __name__ == "__main__":
    FILE.write_text(document())
