"""What must hold before a private run may start: layers and losses in which no example touches another one's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from privtensors.errors import CrossExample, InvalidInput, PrivTensorsError
from privtensors.train.bounding.refusals import refuse_batch_statistics, refuse_model, trainable_parameters
from privtensors.train.roles import Batch, Loss

_TOLERANCE = 1e-3
IGNORED = -100  # the label that losses of torch leave out


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be trained privately. Call it in the mode in which the model trains.

    Raises:
        BoundingError: Nothing in it trains, or it is wrapped in a way that hides its modules.
        CrossExample: A layer normalises over the batch, or keeps statistics of the data without noise.
    """
    refuse_model(model, trainable_parameters(model))
    refuse_batch_statistics(model)


class BufferGuard:
    """Finds a forward pass that changes a buffer: what a buffer learns from the data leaves without noise.

    Args:
        model: Its buffers must stay what they are now.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}

    def check(self) -> None:
        """Compare, by content: some kernels write into buffers without raising their version counters.

        Raises:
            CrossExample: A buffer changed; its name is in the message.
        """
        for name, buffer in self._model.named_buffers():
            held, content = self._before.get(name, (None, None))
            if held is not buffer or content is None or not _same(buffer, content):
                raise CrossExample(
                    f"the forward pass changes the buffer {name!r}, which would carry training data out without noise",
                    where=f"fit, {type(self._model).__name__}",
                    fix="Put that module into a mode in which it keeps no statistics, or replace it",
                )


def check_loss(loss: Loss, model: nn.Module, template: Batch, public: Batch | None = None) -> None:
    """Refuse a loss under which one example changes what another one contributes.

    It is tried on two public, random examples of the template's names, shapes and dtypes: the loss of both must be the mean of
    their losses alone. No training data decides, so the answer tells nothing about them. A loss that passes here may still mix
    examples in ways that random inputs do not show; contrastive losses, batch statistics and averages over the tokens of a
    batch do show.

    Args:
        loss: As for a Bounder.
        model: What it calls; put into evaluation mode meanwhile.
        template: A batch, of which names, dtypes and shapes after the first axis are used.
        public: Two examples to try it on instead.

    Raises:
        CrossExample: It mixes examples, or is no mean over them.
        InvalidInput: It is not finite, is no 0-dimensional tensor, or cannot be computed on public inputs.
    """
    fix = "Give loss= as the mean over examples of what each example says alone; average over tokens within each example"
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            both = public_batch(template) if public is None else public
            whole = _value(loss, both)
            alone = [_value(loss, {name: x[i : i + 1] for name, x in both.items()}) for i in range(2)]
    finally:
        model.train(training)
    mean = sum(alone) / 2
    if not (math.isfinite(whole) and math.isfinite(mean)):
        raise InvalidInput("it is not finite on random inputs, so it cannot be checked", where="fit, loss", fix=fix)
    if abs(whole - mean) > _TOLERANCE * max(1.0, abs(whole), abs(mean)):
        what = f"it mixes the examples of a batch: of two it is {whole:.4g}, and the mean of each alone is {mean:.4g}"
        raise CrossExample(what, where="fit, loss", fix=fix)


def public_batch(template: Batch) -> dict[str, Tensor]:
    """Two random examples like those of ``template``: normal floats, integers 0 and 1, masks of ones.

    Of integer labels with more than one axis, the second half of the second example is -100, so that the two examples count
    different numbers of tokens.
    """
    made = {}
    for name, x in template.items():
        shape = (2, *x.shape[1:])
        if x.is_floating_point():
            made[name] = torch.randn(shape, dtype=torch.float32).to(x.dtype)
        elif x.dtype == torch.bool or "mask" in name:
            made[name] = torch.ones(shape, dtype=x.dtype)
        else:
            made[name] = torch.randint(0, 2, shape).to(x.dtype)
            if "label" in name and x.dim() > 1:
                made[name][1, x.shape[1] // 2 :] = IGNORED
    return made


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _value(loss: Loss, batch: Mapping[str, Tensor]) -> float:
    try:
        value = loss(batch)
    except PrivTensorsError:
        raise
    except Exception as error:  # whatever a user's function raises on inputs it was not made for
        what = f"it cannot be computed on random inputs ({type(error).__name__}), so it cannot be checked"
        raise InvalidInput(what, where="fit, loss", fix="Give public= with two public examples it can be tried on") from error
    if not isinstance(value, Tensor) or value.dim() != 0:
        what = f"it gives a {type(value).__name__}" + (f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "")
        raise InvalidInput(what, where="fit, loss", fix="Give a function of a batch that returns its mean loss, 0-dimensional")
    return float(value)
