"""The running draft in a real server, at a checkpoint: what the trainer promises is what the engine accepts."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from torchspec import __version__
from torchspec.chat.format import ChatFormat
from torchspec.export.hf import serving_config, serving_tensors, write_draft
from torchspec.files.kept import Kept
from torchspec.serve.measure import acceptance, against_own, answers_of, own_tau, served_by
from torchspec.serve.options import training_serving
from torchspec.serve.side import Asked, Side
from torchspec.training.build import Run

CONCURRENCY = 8


def serve_draft(run: Run, draft: nn.Module) -> dict:
    """draft: whole and in model.dtype. A row of metrics.jsonl; exports to output_dir/served/draft, whose server is gone afterwards."""
    wanted, out, dtype = run.config.evaluation, Path(run.config.output_dir) / "served", run.config.model.dtype
    target = run.method.target.folder
    prompts = [run.held_out[i] for i in range(min(wanted.served_samples, len(run.held_out)))]
    stop = ChatFormat.load(target, None, False, run.config.model.trust_remote_code).stop_ids
    asked = Asked(prompts, wanted.served_max_new_tokens, 0.0, run.config.training.seed, tuple(sorted(stop)))
    provenance = {"torchspec": __version__, "method": run.config.draft.method, "data": run.data_facts}
    folder = write_draft(out / "draft", serving_tensors(draft.state_dict(), dtype), serving_config(run.method.config, dtype), provenance)
    served = served_by(run.method, folder, target, getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as scratch:  # every checkpoint is another draft: nothing is kept
        side = Side(served, asked, training_serving(wanted), True, out)
        measured = side.ask([min(CONCURRENCY, len(prompts))], Kept(Path(scratch) / "kept.jsonl", {}))
    (drafted,) = measured.values()
    counted, answers = acceptance(drafted), answers_of(drafted)
    with torch.inference_mode():
        own = own_tau(run.method, draft, run.held_out_capture, asked, answers)
    return {"engine": wanted.served, **counted, **against_own(wanted.served, counted["tau"], own, asked.temperature)}
