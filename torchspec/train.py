"""Training, top to bottom: build -> loop -> save. Nothing here names a draft method or a capture backend."""

import time

import torch

from torchspec import checkpoint
from torchspec.build import Run, build
from torchspec.config import RunConfig
from torchspec.evaluate.acceptance import evaluate_offline
from torchspec.log import RunLog, console
from torchspec.metrics import MetricSums
from torchspec.optim import learning_rate
from torchspec.stream import FeatureStream


def train(config: RunConfig) -> checkpoint.TrainState:
    """Runs to the last step, from the latest checkpoint in output_dir if there is one."""
    run = build(config)
    resume_from = checkpoint.latest(config.checkpoints)
    state = checkpoint.TrainState() if resume_from is None else checkpoint.load(resume_from, run.model, run.optimizers, config)
    if resume_from is not None:
        console.print(f"resuming from {resume_from} at step {state.step} of {run.total_steps}")
    training = config.training
    stream = iter(
        FeatureStream(run.dataset, run.capture, run.plan, state.step * training.draft_accumulation_steps, training.prefetch_depth)
    )
    window, resumed_seconds, started = Window(), state.seconds, time.perf_counter()
    with RunLog(config, state.step, run.total_steps) as log:
        while state.step < run.total_steps:
            for _ in range(training.draft_accumulation_steps):
                fetched = time.perf_counter()
                batch = next(stream)
                window.waited += time.perf_counter() - fetched
                loss_sum, weight_sum, metrics = run.method.loss(run.compute, batch, training.seed)
                loss_sum.backward()
                window.add(loss_sum.detach(), weight_sum, metrics, len(batch.ids))
                state.tokens += len(batch.ids)
            window.update(run, learning_rate(state.step, run.total_steps, training))
            state.step += 1
            state.seconds = resumed_seconds + time.perf_counter() - started
            log.advance(state.step)
            last = state.step == run.total_steps
            evaluated = time.perf_counter()
            improved = (last or state.step % config.evaluation.interval == 0) and evaluate(run, state, log)
            window.started += time.perf_counter() - evaluated
            saving = last or improved or state.step % training.save_interval == 0
            if saving or state.step % config.tracking.log_interval == 0:  # no window spans a checkpoint: a resumed run logs the same lines
                window.log(log, state)
                window = Window()
            if saving:
                save(run, state)
    return state


class Window:
    """What happened since the last line of metrics; holds the sums of the running optimizer step as well."""

    def __init__(self):
        self.metrics, self.started = MetricSums(), time.perf_counter()
        self.tokens, self.waited, self.steps = 0, 0.0, 0
        self.step_weight: torch.Tensor | float = 0.0
        self.grad_norm: torch.Tensor | float = 0.0
        self.rate = 0.0

    def add(self, loss_sum: torch.Tensor, weight_sum: torch.Tensor, metrics: dict, tokens: int) -> None:
        self.step_weight = self.step_weight + weight_sum
        self.metrics.add({"loss": (loss_sum, weight_sum), **metrics})
        self.tokens += tokens

    def update(self, run: Run, rate: float) -> None:
        """One optimizer step: gradients of sums become the gradient of the mean by one division. No supervised token, no step."""
        self.rate, self.steps = rate, self.steps + 1
        scale = 1.0 / torch.as_tensor(self.step_weight).clamp(min=1e-12)
        for parameter in run.model.parameters():
            parameter.grad.mul_(scale)
        self.grad_norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.training.max_grad_norm, error_if_nonfinite=True)
        if self.step_weight > 0:
            for optimizer in run.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
        run.model.zero_grad()
        self.step_weight = 0.0

    def log(self, log: RunLog, state: checkpoint.TrainState) -> None:
        means, seconds = self.metrics.means(), time.perf_counter() - self.started
        row = {"learning_rate": self.rate, "grad_norm": float(self.grad_norm), "capture_share": self.waited / seconds}
        row |= {name: means[name] for name in means if name not in ("loss", "block_tau")}
        row |= {"seconds": state.seconds, "tokens": state.tokens}
        log.train(state.step, means["loss"], means["block_tau"], self.tokens / seconds, row)


def evaluate(run: Run, state: checkpoint.TrainState, log: RunLog) -> bool:
    """Held-out tau; true if it is the best so far."""
    if run.held_out is None:
        return False
    prompts = (run.held_out[i] for i in range(min(len(run.held_out), run.config.evaluation.max_samples)))
    with torch.inference_mode():
        acceptance = evaluate_offline(run.method, run.compute, run.held_out_capture, prompts)
    log.evaluation(state.step, {**acceptance.to_json(), "seconds": state.seconds})
    improved = acceptance.tau > state.best_tau
    if improved:
        state.best_tau, state.best_step = acceptance.tau, state.step
    return improved


def save(run: Run, state: checkpoint.TrainState) -> None:
    """The new checkpoint is complete before an old one goes."""
    root = run.config.checkpoints
    checkpoint.save(root, state, run.model, run.optimizers, run.config, run.method.config, run.data_facts)
    if state.best_step == state.step:
        checkpoint.record_best(root, state)
    checkpoint.rotate(root, run.config.training.max_checkpoints, state.best_step)
