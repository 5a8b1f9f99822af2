"""Tests of Triton kernels on a machine without a GPU: Triton's interpreter runs them, its compiler builds them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from root_dash.kernels.loader import available
from tests.waiting import LIMIT_SECONDS

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: it has no wheel for every platform"
)
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and available(torch.empty(0, device="cuda"))), reason="no CUDA device for Triton"
)


def run_interpreted(module: str) -> None:
    """Run a module of tests as a program in Triton's interpreter, which is chosen before Triton is imported."""
    run = subprocess.run(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert run.returncode == 0, run.stderr


def compiled(
    kernel: Any,
    capability: int,
    constants: Mapping[str, object],
    types: Mapping[str, str],
    cache: Path,
    *,
    aligned: Collection[str] = (),
    **options: int,
) -> Any:
    """Compile a kernel for a device of this capability, as 80 or 90, and return Triton's result (`asm`, `metadata`).

    An argument that is neither a constant nor has a type is an int32. Arguments that are `aligned` are multiples of 16.
    The user's cache of compiled kernels is not used.
    """
    triton, compiler = importlib.import_module("triton"), importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    names: list[str] = kernel.arg_names
    source = compiler.ASTSource(
        kernel,
        {name: "constexpr" if name in constants else types.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    with mock.patch.dict(os.environ, TRITON_CACHE_DIR=str(cache)):
        built = triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})
    assert built.asm["cubin"]
    return built
