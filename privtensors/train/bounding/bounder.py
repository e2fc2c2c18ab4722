"""What every engine needs around it: checks, the clipping norm, the running sum, and a model that is left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from torch import Tensor, nn

from privtensors.errors import BoundingError, ParameterError, UnboundedParameter
from privtensors.train.bounding.batches import check_batch
from privtensors.train.bounding.engine import Choice, Engine
from privtensors.train.bounding.loop import Loop
from privtensors.train.bounding.refusals import refuse_batch_statistics, refuse_changes
from privtensors.train.bounding.sums import RunningSum
from privtensors.train.roles import Batch, Loss


class GradientBounder:
    """Clips each example's gradient to an L2 norm and adds them up: a :class:`~privtensors.train.roles.Bounder`.

    Made by :func:`~privtensors.train.bounding.make_bounder`. The sum is over the examples of all batches since the last ``take``, and
    its sensitivity under zero-out is ``clipping_norm`` up to float32 rounding. An example whose gradient or its norm is not finite
    adds zero. Randomness (dropout) is that of the pass itself.

    Attributes:
        clipping_norm: C > 0. May be changed between ``take`` and ``accumulate``, not within a step.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        clipping_norm: float,
        engine: Engine,
        fallback: Callable[[UnboundedParameter], Engine] | None = None,
    ) -> None:
        self.clipping_norm = clipping_norm
        self._model, self._engine, self._fallback = model, engine, fallback
        self._parameters = dict(parameters)
        self._sums = RunningSum(self._parameters)
        self._single = Loop(self._parameters)
        self._step_norm: float | None = None
        self._closed = False
        self._check_norm()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The trainable parameters by name, a shared one once."""
        return MappingProxyType(self._parameters)

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        return self._engine.name

    def accumulate(self, batch: Batch, loss: Loss, examples: int) -> None:
        """Add the clipped gradients of a batch to the running sum.

        Args:
            batch: Tensors whose first axis runs over the examples; plain constants are passed on.
            loss: Their mean loss, 0-dimensional; may be called more than once, also in eval mode and on parts of the batch.
            examples: How many; 0 adds nothing.

        Raises:
            InvalidInput: A tensor's first axis is not ``examples`` long.
            ParameterError: The clipping norm changed since this step's first batch.
            CrossExample: A layer or the loss mixes examples.
            UnboundedParameter: The engine cannot see how a parameter is used.
            BoundingError: The bounder is closed.
        """
        if self._closed:
            raise BoundingError("the bounder is closed", where="accumulate", fix="Make a new one.")
        self._check_norm()
        check_batch(batch, examples)
        refuse_changes(self._model, self._parameters)
        refuse_batch_statistics(self._model)
        if examples == 0:
            return
        # Of a single example the gradient is the example's own: there is nothing to tell apart.
        engine = self._engine if examples > 1 else self._single
        norm = float(self.clipping_norm)
        with self._clean_grads():
            try:
                engine.bound(batch, loss, examples, norm, self._sums)
            except UnboundedParameter as error:
                if self._fallback is None:
                    raise
                self._engine.close()
                self._engine, self._fallback = self._fallback(error), None
                again = True
            else:
                again = False
        if again:
            with self._clean_grads():
                self._engine.bound(batch, loss, examples, norm, self._sums)
        self._step_norm = norm

    def take(self) -> dict[str, Tensor]:
        """The sum since the last call by name, float32 or wider, in the parameters' shapes; zeros where nothing was added.

        Raises:
            ParameterError: The clipping norm changed since this step's first batch.
            BoundingError: An interrupt cut an addition short.
        """
        self._check_norm()
        self._step_norm = None
        return self._sums.take()

    def describe(self) -> tuple[Choice, ...]:
        """How each module's gradients are bounded, and why."""
        return self._engine.describe()

    def close(self) -> None:
        """Give the model back as it was; further batches are refused."""
        self._closed = True
        self._engine.close()

    def _check_norm(self) -> None:
        norm = self.clipping_norm
        if isinstance(norm, bool) or not isinstance(norm, int | float) or not math.isfinite(norm) or norm <= 0:
            raise ParameterError(f"the clipping norm is {norm!r}", where="clipping_norm", fix="Give a finite number above 0.")
        if self._step_norm is not None and float(norm) != self._step_norm:
            raise ParameterError(
                f"it was {self._step_norm} for the examples already in this step's sum and is now {norm}",
                where="clipping_norm",
                fix="Change it only after take().",
            )

    @contextmanager
    def _clean_grads(self) -> Iterator[None]:
        """No gradients inside; those that were there, and trainable parameters, outside."""
        held = [(p, p.grad) for p in self._parameters.values()]
        try:
            for parameter, _ in held:
                parameter.grad = None
            yield
        finally:
            for parameter, grad in held:
                parameter.requires_grad_(True)
                parameter.grad = grad
