"""Training, top to bottom: build -> loop -> save. Nothing here names a draft method, a capture backend, a launcher or a server."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from torchspec.config import RunConfig
from torchspec.decode.offline import evaluate_anchors
from torchspec.errors import Stopped, UserError
from torchspec.files.writing import writing
from torchspec.nn.device import resolve_device
from torchspec.records import Batch
from torchspec.signals import SAVE, hearing, noted, stop
from torchspec.training import checkpoint, checkpoints
from torchspec.training.build import Run, Supply, build, in_process
from torchspec.training.distributed import World, join_world, sync_gradients, whole
from torchspec.training.log import METRICS, RunLog
from torchspec.training.metrics import MetricSums
from torchspec.training.optim import learning_rate
from torchspec.training.profile import Profiler
from torchspec.training.start import begin
from torchspec.training.stream import all_cores, cores_shared

# Whether somebody else than this process's signals asks to end: the number of a signal, SAVE, or 0
Ask = Callable[[], int]
# A whole draft in model.dtype, at a checkpoint -> a row of metrics.jsonl. It is handed in: serving is no part of training.
Serve = Callable[[Run, nn.Module], dict]


def train(config: RunConfig, supply: Supply = in_process, serve: Serve | None = None) -> checkpoint.TrainState:
    """Runs to the last step, from the latest checkpoint in output_dir if there is one: alone, or as one rank of torchrun's."""
    main = os.environ.get("RANK", "0") == "0"
    with writing(Path(config.output_dir) / METRICS, "torchspec train", lambda: kept(config)) if main else nullcontext():
        return train_together(config, supply, serve)


def train_together(config: RunConfig, supply: Supply, serve: Serve | None, ask: Ask = lambda: 0) -> checkpoint.TrainState:
    """Every rank calls it, and somebody holds the lock of output_dir. One rank that is asked to end is enough."""
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # micro-batches differ in size: no memory lost between
    with join_world(resolve_device(config.model.device)) as world:
        return train_rank(config, world, supply, serve, ask)


def kept(config: RunConfig) -> str:
    """What an interrupted run leaves, and how it goes on."""
    newest = checkpoints.latest(config.checkpoints)
    return "it has written no checkpoint yet" if newest is None else f"the same command goes on from {newest}"


def train_rank(config: RunConfig, world: World, supply: Supply, serve: Serve | None, ask: Ask) -> checkpoint.TrainState:
    if config.evaluation.served and serve is None:
        raise ValueError(f"evaluation.served={config.evaluation.served}, but nobody handed in what serves a checkpoint")
    run = build(config, world, supply)
    if run.leak is not None:
        run.say(run.leak.sentence())
    if config.dataset.eval_share is not None:
        run.say(f"{len(run.held_out):,} samples are held out; `torchspec eval --data {run.held_out.folder}` measures on them")
    training, state = config.training, begin(run)
    saver = checkpoint.Saver(config.checkpoints, config, world, run.method.config, run.data_facts)
    stream = run.stream(state.step * training.draft_accumulation_steps)
    batches, window, resumed_seconds, started = iter(stream), Window(), state.seconds, time.perf_counter()
    log = RunLog(config, state.step, run.total_steps, world.is_main)
    profiled = Profiler(config, state.step, world.device, world.is_main)
    with log, profiled as profiler, noted() as signalled, cores_shared(run.source):
        while state.step < run.total_steps and not out_of_patience(config, state):
            for remaining in reversed(range(training.draft_accumulation_steps)):
                batch = next(batches)
                sync_gradients(run.compute, remaining == 0)
                window.backward(run, batch, training.seed, state.step / run.total_steps)
            window.update(run, learning_rate(state.step, run.total_steps, training))
            state.step += 1
            state.seconds = resumed_seconds + time.perf_counter() - started
            log.advance(state.step)
            last = state.step == run.total_steps
            asked = world.most(max(signalled(), ask()))
            epoch_done = training.save_per_epoch and state.step in run.epoch_ends
            saving = last or epoch_done or asked or state.step % training.save_interval == 0
            evaluating = run.held_out is not None and (last or state.step % config.evaluation.interval == 0)
            # no window spans a checkpoint or an evaluation: a resumed run logs the same lines
            if saving or evaluating or state.step % config.tracking.log_interval == 0:
                window.log(log, state, run, stream.meter.take())
                window = Window()
            if evaluating:
                with window.paused(), all_cores(run.source):
                    improved = evaluate(run, state, log)
                saving = saving or improved or out_of_patience(config, state)
            if saving:
                saver.save(state, run.model, run.optimizers)
                if asked > SAVE and not last:
                    saver.finish()
                    raise Stopped(asked)
                with window.paused():
                    serve_checkpoint(run, serve, saver, log)
            saver.finish_if_written()
            profiler.step()
        saver.finish()
        if state.step < run.total_steps:
            log.stopped(state)
    return state


def out_of_patience(config: RunConfig, state: checkpoint.TrainState) -> bool:
    return config.evaluation.patience is not None and state.since_best >= config.evaluation.patience


class Window:
    """What happened since the last line of metrics; holds the sums of the running optimizer step as well."""

    def __init__(self):
        self.metrics, self.started = MetricSums(), time.perf_counter()
        self.tokens = 0
        self.step_weight: torch.Tensor | float = 0.0
        self.grad_norm: torch.Tensor | float = 0.0
        self.worst_norm: torch.Tensor | float = 0.0  # of all steps; stays NaN
        self.rate = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is no time of training."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def backward(self, run: Run, batch: Batch, seed: int, progress: float) -> None:
        """One micro-batch: its gradient adds to the parameters', its sums to the window's. progress: share of the run's steps done."""
        loss_sum, weight_sum, metrics = run.method.loss(run.compute, batch, seed, progress)
        loss_sum.backward()
        self.step_weight = self.step_weight + weight_sum
        self.metrics.add({"loss": (loss_sum.detach(), weight_sum), **metrics})
        self.tokens += len(batch.ids)

    def update(self, run: Run, rate: float) -> None:
        """One optimizer step: one reduction and one factor turn gradients of sums into the clipped gradient of the mean over all ranks.

        FSDP has averaged the ranks' gradients, hence the number of ranks. Where no token of any rank is supervised the gradient is zero.
        Nothing here waits for a GPU: that the norm is finite is looked at when it is logged, which comes before anything is saved.
        """
        self.rate = rate
        weight = run.world.sum(torch.as_tensor(self.step_weight))
        mean, gradients = run.world.size / weight.clamp(min=1e-12), [parameter.grad for parameter in run.model.parameters()]
        self.grad_norm = mean * whole(torch.nn.utils.get_total_norm(gradients))
        self.worst_norm = torch.maximum(torch.as_tensor(self.worst_norm), self.grad_norm)
        factor = mean * (run.config.training.max_grad_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        run.model.zero_grad()
        self.step_weight = 0.0

    def log(self, log: RunLog, state: checkpoint.TrainState, run: Run, supply: dict) -> None:
        """Every rank calls it, one of them writes."""
        if not math.isfinite(self.worst_norm):
            raise UserError(
                f"the gradient became infinite or NaN in the steps up to {state.step}, and nothing was saved since; "
                "lower training.learning_rate or raise training.warmup_ratio"
            )
        metrics, seconds = self.metrics.all_ranks(run.world), time.perf_counter() - self.started
        means, (right, blocks) = metrics.means(), metrics.sums["block_tau"]
        state.right, state.blocks = state.right + float(right), state.blocks + float(blocks)
        tokens = int(run.world.sum(torch.tensor(self.tokens)))
        state.tokens += tokens
        row = {"learning_rate": self.rate, "grad_norm": float(self.grad_norm), **supply}
        row |= {name: means[name] for name in means if name not in ("loss", "block_tau")}
        row |= {"seconds": state.seconds, "tokens": state.tokens}
        log.train(state.step, means["loss"], means["block_tau"], tokens / seconds, row)


def evaluate(run: Run, state: checkpoint.TrainState, log: RunLog) -> bool:
    """Held-out tau; true if it is the best so far. Ranks share the samples, and their counts add up.

    Beside it block_tau, the mean over every anchor, of held-out text and of what was trained on since the last evaluation: tau itself
    visits other anchors, and says nothing about how well the training text is learned by heart.
    """
    count = min(len(run.held_out), run.config.evaluation.max_samples)
    prompts = (run.held_out[i] for i in range(run.world.rank, count, run.world.size))
    draft = run.whole_draft()  # outside of inference mode: gathering touches tensors that training goes on with
    with torch.inference_mode():
        acceptance, every_anchor = evaluate_anchors(run.method, draft, run.held_out_capture, prompts)
    acceptance = acceptance.from_counts(run.world.sum(acceptance.counts()))
    right, anchors = run.world.sum(every_anchor).tolist()
    improved = acceptance.tau > state.best_tau
    state.since_best = 0 if improved else state.since_best + 1
    if improved:
        state.best_tau, state.best_step = acceptance.tau, state.step
    generalisation = {"block_tau": right / max(anchors, 1), "training_block_tau": state.right / max(state.blocks, 1)}
    state.right, state.blocks = 0.0, 0.0
    log.evaluation(state.step, {**acceptance.to_json(), **generalisation, "since_best": state.since_best, "seconds": state.seconds})
    return improved


def serve_checkpoint(run: Run, serve: Serve | None, saver: checkpoint.Saver, log: RunLog) -> None:
    """Tau of the draft in a real server, beside our own walk over what the server wrote. Every rank calls it, the main one serves: for
    minutes, in which a signal ends the run at once and costs nothing, since the checkpoint is complete."""
    if serve is None:
        return
    saver.finish()
    draft = run.whole_draft()
    if run.world.is_main:
        with hearing(stop), all_cores(run.source):
            log.served(saver.state.step, serve(run, draft))
    run.world.barrier()
