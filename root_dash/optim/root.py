r"""ROOT, the Robust Orthogonalized OpTimizer: Muon that clips outliers first and orthogonalizes more accurately.

For a matrix parameter θ with gradient G, learning rate η, weight decay λ, momentum μ, quantile q and factor s(m, n):

    m_t = μ m_{t-1} + (1 - μ) G_t                            the momentum buffer
    M_t = μ m_t + (1 - μ) G_t under Nesterov, else m_t
    ε_t = the q-quantile of |M_t|
    B_t = clamp(M_t, -ε_t, ε_t)                              the base; the outliers are M_t - B_t
    X_0 = B_t / (1.01 ‖B_t‖_S8)                              or B_t / ‖B_t‖_F
    X_k = a_k X_{k-1} + b_k X_{k-1} X_{k-1}ᵀ X_{k-1} + c_k (X_{k-1} X_{k-1}ᵀ)² X_{k-1}      k = 1..K
    θ_t = (1 - η λ) θ_{t-1} - η s(m, n) X_K

He et al., ROOT: Robust Orthogonalized Optimizer for Neural Network Training, https://arxiv.org/abs/2511.20626.
The paper's momentum is μ m + G; orthogonalization is blind to scale, so the two give the same update, and this one is
`torch.optim.Muon`'s: with `outlier_quantile=1`, `ns_coefficients="muon"`, `normalization="frobenius"` and
`ns_dtype=torch.bfloat16`, ROOT is `torch.optim.Muon`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils.hooks import RemovableHandle

from root_dash.optim.adamw import adamw
from root_dash.optim.arguments import AdjustLr, NsCoefficients, check_group, check_parameter, lr_scale
from root_dash.optim.batches import as_matrix, decay, equal_shaped
from root_dash.optim.coefficients import Normalization, resolve
from root_dash.optim.observation import Observation, Observer
from root_dash.optim.orthogonalize import orthogonalize
from root_dash.optim.outliers import split, threshold
from root_dash.optim.param_groups import param_groups


def root(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: NsCoefficients,
    eps: float,
    ns_steps: int,
    adjust_lr_fn: AdjustLr,
    outlier_quantile: float,
    normalization: Normalization,
    ns_dtype: torch.dtype | None,
    maximize: bool,
    observers: Sequence[Observer] = (),
) -> None:
    """Advance the parameters and their momentum buffers by one step; the gradients are left as they are.

    Parameters of one shape, dtype and device are orthogonalized as one batch.
    """
    if not params:
        return
    seen = grads
    if maximize:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(momentum_buffers, grads, 1 - momentum)

    for indices in equal_shaped(params):
        batch = [params[i] for i in indices]
        momenta = [momentum_buffers[i] for i in indices]
        if nesterov:
            momenta = list(torch._foreach_lerp([grads[i] for i in indices], momenta, momentum))
        M = torch.stack([as_matrix(momentum_) for momentum_ in momenta])  # (L, rows, cols)
        rows, cols = M.shape[1:]
        threshold_, base = None, None
        if outlier_quantile < 1 and M.numel():
            threshold_ = threshold(M.abs(), outlier_quantile)
            base = split(M, threshold_)
        X = orthogonalize(
            M if base is None else base,
            resolve(ns_coefficients, ns_steps, (rows, cols)),
            normalization=normalization,
            eps=eps,
            dtype=ns_dtype,
        ).contiguous()
        scaled_lr = lr * lr_scale((rows, cols), adjust_lr_fn)
        if observers:
            observation = Observation(
                parameters=tuple(batch),
                algorithm="root",
                gradient=torch.stack([as_matrix(seen[i]) for i in indices]),
                momentum=M,
                threshold=threshold_,
                base=base,
                update=X,
                lr=scaled_lr,
            )
            for observe in observers:
                observe(observation)
        _write(batch, X, lr, scaled_lr, weight_decay)


def _write(batch: list[Tensor], X: Tensor, lr: float | Tensor, scaled_lr: float | Tensor, weight_decay: float) -> None:
    """θ <- (1 - η λ) θ - η s X. A learning rate in a tensor stays on its device."""
    decay(batch, lr, weight_decay)
    if X.element_size() < batch[0].element_size():
        X = X.to(batch[0].dtype)  # widening rounds nothing, and equal dtypes let foreach fuse
    if isinstance(scaled_lr, Tensor):
        X, scaled_lr = X * scaled_lr, 1.0
    updates = [update.reshape(param.shape) for update, param in zip(X.unbind(), batch, strict=True)]
    torch._foreach_add_(batch, updates, alpha=-scaled_lr)


class _ParamGroups:
    """`ROOT.param_groups(model)` on the class; an optimizer's own list of groups lies over it."""

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., list[dict[str, Any]]]: ...
    @overload
    def __get__(self, instance: ROOT, owner: type) -> list[dict[str, Any]]: ...
    def __get__(self, instance: ROOT | None, owner: type) -> Any:
        if instance is None:
            return param_groups
        raise AttributeError("param_groups")


class ROOT(Optimizer):
    r"""Robust Orthogonalized OpTimizer for the matrices of a network, with AdamW for the rest of it.

    `ROOT(ROOT.param_groups(model))` splits a model's parameters between the two; see the module for the formulas. The
    arguments up to `adjust_lr_fn` are those of `torch.optim.Muon`. Every argument can be set per parameter group, and a
    group's `algorithm` is `"root"` (the default) or `"adamw"`. Parameters of more than two dimensions are flattened to
    (shape[0], -1).

    Args:
        params: parameters, named parameters, or groups of either.
        lr: learning rate η, a number or a tensor of one element.
        weight_decay: decoupled weight decay λ, not scaled by shape.
        momentum: decay μ of the momentum's moving average.
        nesterov: whether to orthogonalize the momentum one step ahead.
        ns_coefficients: `"robust"`, accurate over all spectra; `"muon"`; `"paper"`, the authors' table, for comparison;
            one (a, b, c) for all steps, or one per step.
        eps: the norm below which an update fades to zero instead of being scaled up.
        ns_steps: number of Newton-Schulz steps K.
        adjust_lr_fn: s(m, n): `"match_rms_adamw"`, 0.2 sqrt(max(m, n)), so that AdamW's lr and weight decay carry over;
            `"original"`, sqrt(max(1, m / n)); `"spectral"`, sqrt(m / n); None, 1; or a function of (m, n).
        outlier_quantile: q; 1 turns clipping off.
        normalization: `"schatten8"` or `"frobenius"`.
        ns_dtype: dtype of the matrix products; None: float64 for float64, else bfloat16 on CUDA and float32 off it.
        betas: decay rates of AdamW's two averages.
        adamw_eps: added to AdamW's denominator.
        maximize: ascend instead of descending.

    Raises:
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
        ns_coefficients: NsCoefficients = "robust",
        eps: float = 1e-30,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLr = "match_rms_adamw",
        *,
        outlier_quantile: float = 0.9,
        normalization: Normalization = "schatten8",
        ns_dtype: torch.dtype | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
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
            "normalization": normalization,
            "ns_dtype": ns_dtype,
            "betas": betas,
            "adamw_eps": adamw_eps,
            "maximize": maximize,
        }
        check_group(defaults)
        self._observers: OrderedDict[int, Observer] = OrderedDict()
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in any optimizer; options it does not set are the constructor's."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            names = group.get("param_names", [None] * len(group["params"]))
            for name, parameter in zip(names, group["params"], strict=True):
                check_parameter(parameter, group["algorithm"], name)
        except ValueError:
            self.param_groups.pop()
            raise
        if group["algorithm"] == "root" and group["ns_coefficients"] == "paper":
            warnings.warn(
                "ns_coefficients='paper' is for comparison: its square set diverges beyond five steps, within which "
                "singular values reach 3.3; 'robust' keeps them below 1.05",
                UserWarning,
                stacklevel=4,
            )

    def register_observer(self, observer: Observer) -> RemovableHandle:
        """Have `observer` called with an `Observation` of every batch in every step, until the handle is removed.

        Observers are not part of the optimizer's state: copies and checkpoints have none.
        """
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer
        return handle

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step; a closure re-evaluates the model first and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        observers = tuple(self._observers.values())
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if any(grad.layout != torch.strided for grad in grads):
                raise RuntimeError("ROOT does not support sparse gradients: build the nn.Embedding with sparse=False")
            lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
            if group["algorithm"] == "root":
                root(
                    params,
                    grads,
                    self._state_of(params, "momentum_buffer"),
                    lr=lr,
                    weight_decay=group["weight_decay"],
                    momentum=group["momentum"],
                    nesterov=group["nesterov"],
                    ns_coefficients=group["ns_coefficients"],
                    eps=group["eps"],
                    ns_steps=group["ns_steps"],
                    adjust_lr_fn=group["adjust_lr_fn"],
                    outlier_quantile=group["outlier_quantile"],
                    normalization=group["normalization"],
                    ns_dtype=group["ns_dtype"],
                    maximize=group["maximize"],
                    observers=observers,
                )
            else:
                adamw(
                    params,
                    grads,
                    self._state_of(params, "exp_avg"),
                    self._state_of(params, "exp_avg_sq"),
                    self._state_of(params, "step"),
                    lr=lr,
                    weight_decay=group["weight_decay"],
                    betas=group["betas"],
                    eps=group["adamw_eps"],
                    maximize=group["maximize"],
                    observers=observers,
                )
        return loss

    def _state_of(self, params: list[Tensor], key: str) -> list[Tensor]:
        """The state under `key` of every parameter, zero where there is none yet."""
        for param in params:
            if key not in self.state[param]:
                self.state[param][key] = (
                    torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(param)
                )
        return [self.state[param][key] for param in params]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also called by load_state_dict: a checkpoint of an older version, or of Muon, lacks some options.
        super().__setstate__(state)
        self.__dict__.setdefault("_observers", OrderedDict())
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
