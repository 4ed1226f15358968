"""Fake CUDA tensors go through Dynamo, AOTAutograd and Inductor as real ones would, up to where a kernel would be started."""

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
import torch
import triton
from torch._inductor import compile_fx
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

TO_MODULE = GraphLowering.compile_to_module
DEVICE = torch.device("cuda", 0)
# each test compiles for itself
INDUCTOR = {"compile_threads": 1, "force_disable_caches": True, "use_static_triton_launcher": False}
INDUCTOR |= {"joint_graph_constant_folding": False, "shape_padding": False}  # both compute on the device while they compile


@pytest.fixture
def lowered(monkeypatch) -> Iterator[None]:
    """Tensors made in the test are fake, graphs are compiled from scratch, and Inductor's code is written but not loaded."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def only_written(lowering: GraphLowering, *code) -> SimpleNamespace:
        lowering.codegen()
        return _shapes_of(lowering)

    monkeypatch.setattr(GraphLowering, "compile_to_module", only_written)
    for passes in (joint_graph, post_grad):  # the patterns that they replace are traced with real tensors on the device
        monkeypatch.setattr(passes, "lazy_init", lambda *args: None)
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)  # the copy of a fake number that is known would be a real one
    with torch._inductor.config.patch(INDUCTOR), FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def kernels(lowered, monkeypatch) -> list:
    """As `lowered`, and the code is loaded: the Triton kernels in it go through ptxas and add themselves to this list."""
    compiled, to_kernel = [], triton.compile

    def loaded(lowering: GraphLowering, *code) -> SimpleNamespace:
        TO_MODULE(lowering, *code)
        return _shapes_of(lowering)

    def recorded(*args, **kwargs):
        compiled.append(to_kernel(*args, **kwargs))
        return compiled[-1]

    monkeypatch.setattr(triton, "compile", recorded)
    monkeypatch.setattr(GraphLowering, "compile_to_module", loaded)
    return compiled


def only_lowered(monkeypatch, *numbers: int) -> None:
    """These graphs, counted from 0. The others are traced and counted: each would take seven to ten seconds more."""
    to_code, number = compile_fx.compile_fx, count()

    def compile_one(graph: torch.fx.GraphModule, inputs: list, **options):
        return to_code(graph, inputs, **options) if next(number) in numbers else graph

    monkeypatch.setattr(compile_fx, "compile_fx", compile_one)


def _shapes_of(lowering: GraphLowering) -> SimpleNamespace:
    """What stands in for the compiled module: fake tensors go through the graph that it was made from."""
    graph = torch.fx.Interpreter(lowering.module)

    def call(inputs: list) -> tuple:
        outputs = graph.run(*inputs)
        inputs.clear()
        return outputs

    return SimpleNamespace(call=call, __file__="none", runner=None)
