r"""ROOT, the Robust Orthogonalized OpTimizer: Muon that clips outliers first and orthogonalizes more accurately.

For a matrix parameter θ with gradient G, learning rate η, weight decay λ, momentum μ, quantile q and factor s(m, n):

    m_t = μ m_{t-1} + (1 - μ) G_t                            the momentum buffer
    M_t = μ m_t + (1 - μ) G_t under Nesterov, else m_t
    ε_t = the q-quantile of |M_t|
    B_t = clamp(M_t, -ε_t, ε_t)                              the base; the outliers are M_t - B_t
    X_0 = B_t / (1.003 ‖B_t‖_S8)                             or B_t / ‖B_t‖_F
    X_k = a_k X_{k-1} + b_k X_{k-1} X_{k-1}ᵀ X_{k-1} + c_k (X_{k-1} X_{k-1}ᵀ)² X_{k-1}      k = 1..K
    θ_t = (1 - η λ) θ_{t-1} - η s(m, n) X_K

He et al., ROOT: Robust Orthogonalized Optimizer for Neural Network Training, https://arxiv.org/abs/2511.20626.
The paper's momentum is μ m + G; orthogonalization is blind to scale, so the two give the same update, and this one is
`torch.optim.Muon`'s: with `outlier_quantile=1`, `ns_coefficients="muon"` and `ns_dtype=torch.bfloat16`, ROOT is
`torch.optim.Muon`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils.hooks import RemovableHandle

from root_dash.coefficients.tables import Normalization
from root_dash.optim.calibration.coefficient_sets import ChangeObserver, CoefficientSets
from root_dash.optim.calibration.online import PAPER_MIXTURE
from root_dash.optim.distributed.dispatch import adamw_over_ranks, check_process_group, root_over_ranks
from root_dash.optim.matrices.nonfinite import NonFinite, finite_flags, refuse_nonfinite
from root_dash.optim.observation import Observer, ShardObserver
from root_dash.optim.options import (
    AdjustLr,
    NsCoefficients,
    Schedule,
    check_group,
    check_parameter,
    own_normalization,
)
from root_dash.optim.outliers.threshold import QuantileMethod
from root_dash.optim.param_groups import param_groups
from root_dash.optim.update.adamw import step_device
from root_dash.optim.update.root_step import StepTensors
from root_dash.optim.update.step_options import StepOptions, plain_lr

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _ParamGroups:
    """The function `ROOT.param_groups(model)` on the class. On an optimizer the list of groups hides the function."""

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., list[dict[str, Any]]]: ...
    @overload
    def __get__(self, instance: ROOT, owner: type) -> list[dict[str, Any]]: ...
    def __get__(self, instance: ROOT | None, owner: type) -> Any:
        if instance is None:
            return param_groups
        raise AttributeError("param_groups")


class ROOT(Optimizer):
    r"""Robust Orthogonalized OpTimizer for the matrices of a network, with AdamW for its other parameters.

    `ROOT(ROOT.param_groups(model))` splits a model's parameters between the two. The module has the formulas. The
    arguments up to `adjust_lr_fn` are as in `torch.optim.Muon`. Every argument can be set per parameter group, and a
    group's `algorithm` is `"root"` (the default) or `"adamw"`.

    Args:
        params: parameters, named parameters, or groups of either.
        lr: learning rate η, a number or a tensor of one element.
        weight_decay: decoupled weight decay λ, not scaled by shape.
        momentum: decay μ of the momentum's moving average.
        nesterov: whether to orthogonalize the momentum one step ahead.
        ns_coefficients: `"adaptive"`, a set for each shape that starts from `"robust"`, accurate over all spectra, and
            is refitted to the spectra of the run; `"adanewton"`, the same in the paper's form: one (a, b, c) per shape
            for all steps; for comparison `"muon"`, `"paper"` (the authors' table) and `"polar_express"`; or one
            (a, b, c) for all steps, or one per step.
        eps: the norm below which an update fades to zero instead of being scaled up.
        ns_steps: number of Newton-Schulz steps K.
        adjust_lr_fn: s(m, n): `"match_rms_adamw"`, 0.2 sqrt(max(m, n)), so that AdamW's lr and weight decay carry over;
            `"original"`, sqrt(max(1, m / n)); `"spectral_unclamped"` (or `"spectral"`), sqrt(m / n); None, 1; or a
            function of (m, n).
        outlier_quantile: q, or a function of the step, which counts from 1; q = 1 turns clipping off.
        outlier_threshold: a fixed ε instead of a quantile, or a function of the step.
        quantile_method: `"exact"`; `"histogram"`, within 0.4 %; `"sampled"`, of 65,536 entries.
        normalization: `"schatten8"` or `"frobenius"`; None: the norm for which `ns_coefficients` is made.
        ns_dtype: dtype of the matrix products; None: float64 for float64, bfloat16 on CUDA, and float32 on a CPU, with
            bfloat16, if the processor has it, for the last steps, which no longer round small singular values.
        batch_ndim: number of leading dimensions that are a batch of matrices, as 1 for a stack of experts; with 0, a
            parameter of more than two dimensions is flattened to (shape[0], -1), as convolution kernels are.
        split_sizes: cut the rows of each matrix into blocks of these sizes, each orthogonalized alone, as fused QKV.
        num_heads: cut the rows of each block into this many equal blocks; a number, or one for each of `split_sizes`.
        calibrate_every: steps between two calibrations of an adaptive set; 0 keeps the starting set.
        calibration_mixture: the weights of real and of random spectra in a fit.
        betas: decay rates of AdamW's two averages.
        adamw_eps: added to AdamW's denominator.
        maximize: ascend instead of descending.
        nonfinite: the effect of NaN or infinity in a gradient: `"propagate"` to the weights; `"skip"`: the parameter
            and its state do not change, the group counts the step in `"skipped"`, and the host does not wait for the
            device; or `"raise"` a FloatingPointError before anything changes, for which the host waits for the device.
        foreach: False orthogonalizes the matrices one by one: slower, with the least memory.
        capturable: prepare for CUDA graphs: the coefficients are read from tensors, and only `calibrate()`, called
            between replays, refits the sets.
        process_group: the processes that hold the same parameters and gradients, as under DistributedDataParallel:
            each orthogonalizes its share of the matrices, and all write the same weights. All of them have to call
            `step` alike. None: every process does everything. Sharded parameters (FSDP2, DTensors) need no group: ROOT
            recognizes them by their type. The group is not part of the state: copies and unpickled optimizers have
            none.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of its range, or a parameter that its group's algorithm cannot step.
    """

    param_groups = _ParamGroups()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: NsCoefficients = "adaptive",
        eps: float = 1e-36,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLr = "match_rms_adamw",
        *,
        outlier_quantile: float | Schedule = 0.9,
        outlier_threshold: float | Schedule | None = None,
        quantile_method: QuantileMethod = "exact",
        normalization: Normalization | None = None,
        ns_dtype: torch.dtype | None = None,
        batch_ndim: int = 0,
        split_sizes: Sequence[int] | None = None,
        num_heads: int | Sequence[int] | None = None,
        calibrate_every: int = 100,
        calibration_mixture: tuple[float, float] = PAPER_MIXTURE,
        betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        maximize: bool = False,
        nonfinite: NonFinite = "propagate",
        foreach: bool | None = None,
        capturable: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_process_group(process_group)
        defaults = {
            "algorithm": "root",
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "outlier_quantile": outlier_quantile,
            "outlier_threshold": outlier_threshold,
            "quantile_method": quantile_method,
            "normalization": normalization,
            "ns_dtype": ns_dtype,
            "batch_ndim": batch_ndim,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
            "calibrate_every": calibrate_every,
            "calibration_mixture": calibration_mixture,
            "betas": betas,
            "adamw_eps": adamw_eps,
            "maximize": maximize,
            "nonfinite": nonfinite,
            "foreach": foreach,
            "capturable": capturable,
        }
        check_group(_with_own_normalization(dict(defaults)))
        self._observers: OrderedDict[int, tuple[Observer, Callable[[], bool]]] = OrderedDict()
        self._shard_observers: OrderedDict[int, ShardObserver] = OrderedDict()
        self._refusal_observers: OrderedDict[int, Callable[[FloatingPointError], object]] = OrderedDict()
        self._sets = CoefficientSets()
        self.process_group = process_group
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in any optimizer. Missing options have the constructor's values."""
        super().add_param_group(param_group)
        group = _with_own_normalization(self.param_groups[-1])
        try:
            check_group(group)
            names = group.get("param_names", [None] * len(group["params"]))
            for name, parameter in zip(names, group["params"], strict=True):
                check_parameter(parameter, group, name)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        group.setdefault("step", 0)
        group.setdefault("turn", 0)  # of the calibrations: torch.distributed.checkpoint loads only existing entries
        if group["algorithm"] == "root" and group["ns_coefficients"] == "paper":
            warnings.warn(
                "ns_coefficients='paper' is for comparison: its square set diverges beyond five steps, within which "
                "singular values reach 3.3; 'robust' keeps them below 1.05",
                UserWarning,
                stacklevel=4,
            )

    def register_observer(self, observer: Observer, wanted: Callable[[], bool] = lambda: True) -> RemovableHandle:
        """Call `observer` with an `Observation` of every batch in every step, until the returned handle is removed.

        `wanted` is called once per step and group. If it returns False, nothing is made for this observer. Observers
        are not part of the optimizer's state: copies and checkpoints have none.
        """
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer, wanted
        return handle

    def register_shard_observer(self, observer: ShardObserver) -> RemovableHandle:
        """Call `observer` with the `ShardObservation`s of this process in every step, until the handle is removed.

        A call has some shards of sharded parameters, each of another matrix.
        """
        handle = RemovableHandle(self._shard_observers)
        self._shard_observers[handle.id] = observer
        return handle

    def register_change_observer(self, observer: ChangeObserver) -> RemovableHandle:
        """Call `observer` with a `Change` whenever a calibration replaces the set of a shape."""
        return self._sets.register_observer(observer)

    def register_refusal_observer(self, observer: Callable[[FloatingPointError], object]) -> RemovableHandle:
        """Call `observer` with the error before a step raises it because of `nonfinite="raise"`."""
        handle = RemovableHandle(self._refusal_observers)
        self._refusal_observers[handle.id] = observer
        return handle

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step; a closure re-evaluates the model first and returns the loss.

        Raises:
            RuntimeError: a gradient is sparse.
            FloatingPointError: a gradient is not finite, in a group with `nonfinite="raise"`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepped = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(p.grad.layout != torch.strided for params in stepped for p in params):
            raise RuntimeError("ROOT does not support sparse gradients: build the nn.Embedding with sparse=False")
        for group, params in zip(self.param_groups, stepped, strict=True):
            if group["nonfinite"] == "raise":
                names = dict(zip(group["params"], group.get("param_names", ()), strict=False))
                shown = [names.get(p, f"a parameter of shape {tuple(p.shape)}") for p in params]
                try:
                    refuse_nonfinite([p.grad for p in params], shown)
                except FloatingPointError as error:
                    for observe in tuple(self._refusal_observers.values()):
                        observe(error)
                    raise
        for index, (group, params) in enumerate(zip(self.param_groups, stepped, strict=True)):
            self._step_group(index, group, params)
        return loss

    @torch.no_grad()
    def calibrate(self) -> None:
        """Adopt the sets of the calibration before, and begin another calibration on the present momenta.

        `step` does this by itself every `calibrate_every` steps, except in groups with `capturable=True`: call this
        method between replays of their graph. The first calls only gather spectra. The host does not wait for the
        device, but waits for an unfinished fit.
        """
        for index, group in enumerate(self.param_groups):
            if group["algorithm"] == "root":
                self._sets.calibrate(index, group, self.state, now=True, process_group=self.process_group)

    def _step_group(self, index: int, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        finite = None
        if group["nonfinite"] == "skip" and params:
            finite = finite_flags(grads)
            _count_skipped(group, dict(zip(params, finite, strict=True)))
        observers = tuple(observer for observer, wanted in self._observers.values() if wanted())
        shard_observers = tuple(self._shard_observers.values())
        if group["algorithm"] == "adamw":
            adamw_over_ranks(
                params,
                grads,
                self._state_of(params, "exp_avg"),
                self._state_of(params, "exp_avg_sq"),
                self._state_of(params, "step"),
                lr=plain_lr(group),
                weight_decay=group["weight_decay"],
                betas=group["betas"],
                eps=group["adamw_eps"],
                maximize=group["maximize"],
                capturable=group["capturable"],
                finite=finite,
                observers=observers,
                shard_observers=shard_observers,
            )
            return
        still = group["capturable"] or torch.compiler.is_compiling()
        step = group["step"] + 1
        if not still:
            self._sets.adopt(index, group, step, self.process_group)
        tensors = StepTensors(params, grads, self._state_of(params, "momentum_buffer"), finite)
        options = StepOptions.of(group, step, self._sets.lookup(index, group))
        root_over_ranks(tensors, options, self.process_group, observers, shard_observers)
        if not still:
            group["step"] = step
            self._sets.calibrate(index, group, self.state)

    def _state_of(self, params: list[Tensor], key: str) -> list[Tensor]:
        """Return the state under `key` of every parameter. A missing state begins as zeros."""
        for param in params:
            state = self.state[param]
            if key == "step":
                device = step_device(param)
                if key not in state:
                    state[key] = torch.zeros((), dtype=torch.float32, device=device)
                elif not isinstance(state[key], Tensor):  # from a checkpoint of an old AdamW
                    state[key] = torch.tensor(float(state[key]), dtype=torch.float32, device=device)
                elif state[key].device != device:
                    state[key] = state[key].to(device)  # from a checkpoint of an unfused AdamW
            elif key not in state:
                state[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return [self.state[param][key] for param in params]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the calibrations of adaptive sets. Waits for pending calibrations."""
        self._sets.save(self.param_groups)
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        self._sets.save(self.param_groups)
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict calls this too: a checkpoint of an older version, or of Muon, lacks some options.
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds this option, and every group would get it
        self.__dict__.setdefault("_observers", OrderedDict())
        self.__dict__.setdefault("_shard_observers", OrderedDict())
        self.__dict__.setdefault("_refusal_observers", OrderedDict())
        self.__dict__.setdefault("_sets", CoefficientSets())
        self.__dict__.setdefault("process_group", None)
        for group in self.param_groups:
            if "algorithm" not in group and group.get("adjust_lr_fn", "") is None:
                group["adjust_lr_fn"] = "original"  # the meaning of None in torch.optim.Muon
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.setdefault("step", 0)
            group.setdefault("turn", 0)
            _with_own_normalization(group)
        self._sets.load(self.param_groups)


def _with_own_normalization(group: dict[str, Any]) -> dict[str, Any]:
    if group["normalization"] is None:
        group["normalization"] = own_normalization(group["ns_coefficients"])
    return group


def _count_skipped(group: dict[str, Any], finite: dict[Tensor, Tensor]) -> None:
    """Add 1 to the group's count of each skipped parameter. The counts stay on the device of the first parameter."""
    device = group["params"][0].device
    skips = [
        (~finite[p]).long().to(device, non_blocking=True)
        if p in finite
        else torch.zeros((), dtype=torch.long, device=device)
        for p in group["params"]
    ]
    now = torch.stack(skips)
    group["skipped"] = now if "skipped" not in group else group["skipped"].to(device, non_blocking=True) + now
