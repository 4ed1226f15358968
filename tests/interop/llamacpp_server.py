"""llama.cpp's own server out of the wheel of `xllamacpp`, started by the command line of `llama-server`.

The wheel holds the C++ server as it is, behind a record of its parameters: each word that we give `llama-server` sets one of them, and a
word that has none here is an error.
"""

import argparse
import signal

import xllamacpp

SPECULATION = xllamacpp.common_speculative_type


def parameters() -> xllamacpp.CommonParams:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-md", "--spec-draft-model")
    parser.add_argument("--spec-type")
    parser.add_argument("--spec-draft-n-max", type=int)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-c", "--ctx-size", type=int, required=True)
    parser.add_argument("-np", "--parallel", type=int, required=True)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--metrics", action="store_true")
    asked, taken = parser.parse_args(), xllamacpp.CommonParams()
    taken.model.path, taken.hostnames, taken.port = asked.model, [asked.host], asked.port
    taken.n_ctx, taken.n_parallel, taken.endpoint_metrics = asked.ctx_size, asked.parallel, asked.metrics
    if asked.threads:
        taken.cpuparams.n_threads = asked.threads
    if asked.spec_draft_model:
        taken.speculative.draft.mparams.path = asked.spec_draft_model
        taken.speculative.types = [getattr(SPECULATION, f"COMMON_SPECULATIVE_TYPE_{asked.spec_type.replace('-', '_').upper()}")]
        taken.speculative.draft.n_max = asked.spec_draft_n_max
    return taken


if __name__ == "__main__":
    server = xllamacpp.Server(parameters())
    print("listening on", server.listening_address, flush=True)
    signal.pause()
