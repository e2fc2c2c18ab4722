"""What one pass over a batch leaves: inputs and output gradients of modules, or per-example gradients already formed from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from privtensors.errors import UnboundedParameter
from privtensors.train.bounding.sites import Site
from privtensors.train.bounding.sums import sum_dtype


def wide(tensor: Tensor) -> Tensor:
    """A floating-point tensor in float32 or wider."""
    return tensor.to(sum_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor


class Use:
    """One use of a site, whose input and output gradient are kept until the clipping factors are known.

    Attributes:
        site: The module.
        given: Its input as it came, later ``(B, T, d)``; ids ``(B, T)`` of an embedding.
        grad: The gradient of the summed loss at its output, later ``(B, T, p)``; empty before it is there.
        bias: The site's trainable bias, until its per-example gradients are formed.
    """

    __slots__ = ("_given_version", "_grad_version", "bias", "given", "grad", "site")

    def __init__(self, site: Site, given: Tensor) -> None:
        self.site, self.bias = site, site.bias
        self.given, self.grad = given, given.new_empty(0)
        self._given_version, self._grad_version = given._version, 0

    def check_input(self) -> None:
        """Refuse an input that was changed in place since; autograd does so where it keeps the input itself.

        Raises:
            UnboundedParameter: It was.
        """
        if self.given._version != self._given_version:
            raise self._changed("its input was changed in place after it ran")

    def set_grad(self, grad: Tensor) -> None:
        self.grad, self._grad_version = grad, grad._version

    def check_grad(self) -> None:
        """Refuse a gradient that someone's backward function changed in place after it was observed."""
        if self.grad._version != self._grad_version:
            raise self._changed("the gradient at its output was changed in place during the backward pass")

    def pair(self, given: Tensor, grad: Tensor) -> None:
        """Keep both in the shapes used from here on, which may be new tensors."""
        self.given, self.grad = given, grad
        self._given_version, self._grad_version = given._version, grad._version

    def _changed(self, what: str) -> UnboundedParameter:
        return UnboundedParameter(what, where=self.site.label, fix="Write the operation out of place.", parameter=self.site.name)


@dataclass
class Observed:
    """What one pass over a batch of B examples leaves.

    Attributes:
        examples: B.
        rows: Per parameter the examples' gradients formed so far, ``(B, *parameter.shape)``, float32 or wider, owned here.
        uses: Uses whose gradients are not formed.
        lengths: Per weight of a linear layer the rows that an example has in its uses so far.
        methods: Per site how its norms are computed, and T, how many rows an example has.
    """

    examples: int
    rows: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    lengths: dict[nn.Parameter, int] = field(default_factory=dict)
    methods: dict[Site, tuple[str, int]] = field(default_factory=dict)

    def add_rows(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Add ``(B, *parameter.shape)``; the tensor is kept if it is the first."""
        held = self.rows.get(parameter)
        if held is None:
            self.rows[parameter] = value.view(self.examples, *parameter.shape)
        else:
            held.add_(value.view(held.shape))
