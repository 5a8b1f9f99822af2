"""The coefficient sets of an optimizer: a set for each matrix shape of each parameter group, calibrated on the run."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from root_dash.coefficients.tables import Coefficients, resolve
from root_dash.optim.calibration.online import Calibration, Change, MatrixShape
from root_dash.optim.matrices.batches import MatrixBatch, MatrixRef, matrix_batches
from root_dash.optim.matrices.layout import Layout, pieces
from root_dash.optim.matrices.shards import broadcast_first, full_tensor, process_groups
from root_dash.optim.newton_schulz.plan import is_fine, plan
from root_dash.optim.options import ONLINE
from root_dash.optim.update.step_options import Clipping, SetLookup

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ChangeObserver: TypeAlias = Callable[[Change], object]


class CoefficientSets:
    """The coefficient sets of all groups of an optimizer. A group is identified by its index and has its options."""

    def __init__(self) -> None:
        self._calibrations: dict[int, Calibration] = {}
        self._tensors: dict[tuple[int, MatrixShape, torch.device, bool], Tensor] = {}
        self._observers: OrderedDict[int, ChangeObserver] = OrderedDict()

    def register_observer(self, observer: ChangeObserver) -> RemovableHandle:
        """Call `observer` with every change of a set, until the returned handle is removed."""
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer
        return handle

    def lookup(self, index: int, group: Mapping[str, Any]) -> SetLookup:
        """Return the function that finds the set of a batch. If capturable, the set is a tensor, for CUDA graphs."""

        def triples(batch: MatrixBatch) -> Sequence[Coefficients] | Tensor:
            fine = _is_fine(group, batch.shape, batch.dtype, batch.device)
            if not group["capturable"]:
                return self._triples(index, group, batch.shape, fine)
            key = (index, batch.shape, batch.device, fine)
            if key not in self._tensors:
                self._tensors[key] = _on_device(self._triples(index, group, batch.shape, fine), batch.device)
            return self._tensors[key]

        return triples

    def adopt(self, index: int, group: Mapping[str, Any], step: int, process_group: ProcessGroup | None = None) -> None:
        """Put the sets that are due at a step in place, and call the observers.

        Processes that share parameters, as copies or as shards, take the sets of the first process, because different
        processors may round a fit differently. If the parameters are shared, this is a collective call, for which the
        host waits.
        """
        if index not in self._calibrations:
            return
        calibration = self._calibrations[index]
        proposals = calibration.take(step)
        groups = process_groups(group["params"], process_group) if proposals else []
        if groups:
            none = [math.nan] * calibration.width
            found = torch.tensor([none if each is None else each for each in proposals.values()], dtype=torch.float64)
            rows = broadcast_first(found, group["params"][0].device, groups).tolist()
            agreed = (None if math.isnan(row[0]) else row for row in rows)
            proposals = dict(zip(proposals, agreed, strict=True))
        changes = calibration.apply(step, proposals)
        if changes:
            self._refresh(index, group)
        for change in changes:
            for observe in tuple(self._observers.values()):
                observe(change)

    def calibrate(
        self,
        index: int,
        group: MutableMapping[str, Any],
        state: Mapping[Tensor, Mapping[str, Any]],
        *,
        now: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """After a step, begin a calibration of each shape with the base of one of its matrices, if one is due.

        With `now` pending calibrations are adopted first, whatever their age, and new calibrations begin at any step.
        """
        calibration = self._calibration(index, group)
        if calibration is None:
            return
        step = group["step"]
        if now:
            self.adopt(index, group, step + calibration.lag, process_group)
        elif not calibration.due(step):
            return
        group["turn"] += 1
        for shape, base in _bases(group, state, step, group["turn"], partial(calibration.wants, now=now)):
            fine = _is_fine(group, shape, base.dtype, base.device)
            calibration.offer(step, shape, base, fine=fine, now=now)

    def save(self, groups: Sequence[MutableMapping[str, Any]]) -> None:
        """Write the state of each calibration into its group, as one string.

        The state grows with new shapes and spectra, but `torch.distributed.checkpoint` loads only existing entries. A
        string is one entry, whatever its length.
        """
        for index, calibration in self._calibrations.items():
            groups[index]["calibration"] = json.dumps(calibration.state_dict(), default=_numbers)

    def load(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Load the states that `save` wrote into the groups."""
        self._calibrations.clear()
        for index, group in enumerate(groups):
            calibration = self._calibration(index, group) if "calibration" in group else None
            if calibration is not None:
                calibration.load_state_dict(json.loads(group["calibration"], object_hook=_tensor))
            self._refresh(index, group)

    def _refresh(self, index: int, group: Mapping[str, Any]) -> None:
        """Write the present sets into the tensors that a captured graph reads."""
        for (owner, shape, _, fine), tensor in self._tensors.items():
            if owner == index:
                tensor.copy_(_on_device(self._triples(index, group, shape, fine), tensor.device))

    def _triples(self, index: int, group: Mapping[str, Any], shape: MatrixShape, fine: bool) -> Sequence[Coefficients]:
        calibration = self._calibration(index, group)
        if calibration is not None:
            return calibration.coefficients(shape, fine=fine)
        return resolve(group["ns_coefficients"], group["ns_steps"], shape, fine=fine)

    def _calibration(self, index: int, group: Mapping[str, Any]) -> Calibration | None:
        choice = group["ns_coefficients"]
        if group["algorithm"] != "root" or choice not in ONLINE or not group["calibrate_every"]:
            return None
        if index not in self._calibrations:
            self._calibrations[index] = Calibration(
                choice,
                group["ns_steps"],
                normalization=group["normalization"],
                every=group["calibrate_every"],
                mixture=group["calibration_mixture"],
            )
        return self._calibrations[index]


def _on_device(triples: Sequence[Coefficients], device: torch.device) -> Tensor:
    """Return a set (K, 3) on the device. A copy to CUDA starts from pinned memory, so that the host does not wait."""
    on_cuda = device.type == "cuda"
    return torch.tensor(triples, pin_memory=on_cuda).to(device, non_blocking=on_cuda)


def _is_fine(group: Mapping[str, Any], shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> bool:
    """Return `plan.is_fine` for matrices of a shape and dtype under the options of a group."""
    return is_fine(plan(min(shape), max(shape), group["ns_steps"], group["ns_dtype"], "auto", dtype, device.type))


def _numbers(tensor: Tensor) -> dict[str, list[float]]:
    """Return a float64 tensor as JSON, with every bit."""
    return {"float64": tensor.tolist()}


def _tensor(values: dict[str, Any]) -> Any:
    return torch.tensor(values["float64"], dtype=torch.float64) if values.keys() == {"float64"} else values


def _bases(
    group: Mapping[str, Any],
    state: Mapping[Tensor, Mapping[str, Any]],
    step: int,
    turn: int,
    wants: Callable[[int, MatrixShape], bool],
) -> list[tuple[MatrixShape, Tensor]]:
    """Return B of a matrix of each wanted shape (m, n), m <= n, from gradient and momentum of the last step.

    The matrices of a shape take turns.
    """
    layout, clipping = Layout.of(group), Clipping.of(group, step)
    params = [p for p in group["params"] if p.grad is not None and "momentum_buffer" in state.get(p, {})]
    refs: dict[MatrixShape, list[MatrixRef]] = {}
    for batch in matrix_batches(params, layout):
        rows, cols = batch.shape
        if min(batch.shape) > 0:
            refs.setdefault((min(rows, cols), max(rows, cols)), []).extend(batch.refs)
    bases = []
    for shape, found in refs.items():
        if not wants(step, shape):
            continue
        ref = found[turn % len(found)]
        parameter = params[ref.parameter]
        buffer = pieces(full_tensor(state[parameter]["momentum_buffer"]), layout)[ref.piece]
        M = buffer
        if group["nesterov"]:
            gradient = pieces(full_tensor(parameter.grad), layout)[ref.piece]
            M = (gradient.neg() if group["maximize"] else gradient).lerp(buffer, group["momentum"])
        M = M.unsqueeze(0).contiguous()
        _, base = clipping.clip(M)
        bases.append((shape, (M if base is None else base)[0]))
    return bases
