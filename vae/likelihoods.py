"""Likelihoods p(x|z): what the decoder's numbers mean.

B examples, D pixels, P parameters per pixel. Log probabilities are in nats, summed over pixels, and computed in
at least float32, so bf16 networks keep an exact loss. `x` is what `prepare_train` or `prepare_eval` returned
("prepared"), unless it says "grey".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vae.binarise import binarise
from vae.errors import UserError, did_you_mean

#: Smallest and largest mean pixel that an output bias starts from (the authors' code of Burda et al. 2016).
_MEAN_RANGE = (0.001, 0.999)
#: Largest |logit| that a continuous Bernoulli's output bias starts from: a mean pixel of 0.02 or 0.98. A mean
#: of 0.001 would need a logit of -1000, which no optimizer gets away from.
_MAX_CONTINUOUS_LOGIT = 50.0
#: Smallest log variance of the Gaussian: a standard deviation of one grey level of an 8-bit image.
_MIN_LOG_VAR = -2.0 * math.log(255.0)
#: Smallest variance that the Gaussian's output bias starts from: a pixel that hardly varies would give first gradients
#: far beyond the others'. Where all vary little, a tenth of their average; always clear of _MIN_LOG_VAR.
_MIN_INITIAL_VARIANCE = 0.01
_MIN_INITIAL_SHARE = 0.1
#: Brightest grey level of 8 bits, and half a level as a pixel.
_WHITE = 255.0
_HALF_LEVEL = 0.5 / _WHITE
#: Smallest log scale of the discretised logistic, the bound of PixelCNN++ (Salimans et al. 2017): 97 % of the mass
#: on one level.
_MIN_LOG_SCALE = -7.0 - math.log(2.0)
#: Log scale at a raw 0, where networks start: of 0, -2, -3 and -4 the best on 9,000 images of Fashion-MNIST after 20
#: epochs of Adam (3.69, 3.65, 3.67 and more bits per dimension).
_RAW_ZERO = -2.0
#: Bisections of an output bias that has no closed form: to the last digit of a float64.
_BISECTIONS = 60


class PixelMoments(NamedTuple):
    """What an output bias starts from: of each pixel, over the training examples."""

    mean: Tensor  # (D,)
    variance: Tensor  # (D,)


class Likelihood(Protocol):
    """p(x|z): what the decoder's output means.

    What the training, the ELBO and the pictures ask of one; a recipe names the built-in ones only."""

    @property
    def name(self) -> str: ...

    @property
    def parameters_per_pixel(self) -> int:
        """P: the decoder gives P * D numbers, the first parameter of all pixels first."""

    @property
    def is_likelihood(self) -> bool:
        """False where `log_prob` is not the log of a normalised density or mass over its support."""

    @property
    def levels(self) -> int | None:
        """How many values a pixel can have, a power of 2: black is 0, white the last; None where `log_prob` is not
        the log of a probability."""

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest grey pixel that it accepts."""

    def prepare_train(self, x: Tensor) -> Tensor:
        """(B, D) grey pixels to what training models, (B, D). Any draws are from torch's global generator."""

    def prepare_eval(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, D) grey pixels to what evaluation models, (B, D): the same for every call on the same image.

        `generator`, freshly seeded by the caller, is for likelihoods whose evaluation draws; none here does.
        """

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats, summed over pixels: (B, P * D), (B, D) -> (B,)."""

    def total_log_prob_and_gradient(self, parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` summed over the batch, a scalar, and its gradient for `parameters`, (B, P * D), in at
        least float32 and in memory of its own. What training needs, without autograd and fast."""

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z]: (B, P * D) -> (B, D)."""

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """x ~ p(x|z): (B, P * D) -> (B, D). `generator` is on the device of `parameters`."""

    def initial_bias(self, pixels: PixelMoments) -> Tensor:
        """(P * D,): the output bias under which E[x|z] is the mean of the training pixels."""


class Discrete(Likelihood, Protocol):
    """A likelihood of whole levels, as a coder takes it: a bit at a time, the highest first."""

    def bit_probability(self, parameters: Tensor, prefix: Tensor, bit: int) -> Tensor:
        """P(bit = 1 | the bits above it are `prefix`), (B, D): of each pixel's level its bit number `bit`, from 0, the
        highest. parameters: (B, P * D); prefix: (B, D) int64, the bits above as a number."""


@dataclass(frozen=True)
class Bernoulli:
    """Pixels that are 0 or 1, P = 1: the decoder gives logits.

    `binarisation` says how grey pixels become binary in training: not at all ("none": the grey-pixel
    cross-entropy, common but not a likelihood: it does not integrate to 1 over [0, 1]), once and for all
    ("static": `vae.binarise`), or anew for every batch ("dynamic"). Evaluation of either kind is static.
    """

    name: str
    binarisation: Literal["none", "static", "dynamic"]
    parameters_per_pixel: int = 1
    support: tuple[float, float] = (0.0, 1.0)

    @property
    def is_likelihood(self) -> bool:
        return self.binarisation != "none"

    @property
    def levels(self) -> int | None:
        return None if self.binarisation == "none" else 2

    def prepare_train(self, x: Tensor) -> Tensor:
        if self.binarisation == "dynamic":
            return (torch.rand_like(x) < x).to(x.dtype)
        return x if self.binarisation == "none" else binarise(x)

    def prepare_eval(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - see Likelihood
        return x if self.binarisation == "none" else binarise(x)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits = at_least_fp32(parameters)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return -cross_entropy.sum(-1)  # (B,), nats

    def total_log_prob_and_gradient(self, parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = at_least_fp32(parameters)
        p = torch.sigmoid(logits)
        # x a - ln(1 + e^a) = x a - max(a, 0) + ln sigmoid(|a|). The last is the log of max(p, 1 - p), at least
        # 1/2: torch's log takes a sixth of the time of its log1p and loses nothing there. Each part is summed by
        # itself, and in place where it can be: what counts is how much memory is touched.
        q = 1.0 - p
        total = torch.maximum(p, q, out=q).log_().sum()
        total += torch.dot(logits.flatten(), x.flatten()) - logits.relu().sum()
        return total, torch.sub(x, p, out=p)

    def bit_probability(self, parameters: Tensor, prefix: Tensor, bit: int) -> Tensor:  # noqa: ARG002 - it has one bit
        return self.mean(parameters)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.sigmoid(at_least_fp32(parameters))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(self.mean(parameters), generator=generator)

    def initial_bias(self, pixels: PixelMoments) -> Tensor:
        """The logit of the mean, which is first moved into [0.001, 0.999] (the code of Burda et al. 2016)."""
        return torch.logit(pixels.mean.clamp(*_MEAN_RANGE))


@dataclass(frozen=True)
class ContinuousBernoulli:
    """Pixels anywhere in [0, 1] (Loaiza-Ganem & Cunningham 2019), P = 1: the decoder gives logits.

    With the logit a of lambda the density of their eq. 4 is exp(a x) a / (e^a - 1)
    = exp(a (x - 1/2)) / (sinh(a / 2) / (a / 2)): an even normaliser, smooth through lambda = 1/2 (a = 0).
    """

    name: str = "continuous_bernoulli"
    parameters_per_pixel: int = 1
    is_likelihood: bool = True
    levels: int | None = None
    support: tuple[float, float] = (0.0, 1.0)

    def prepare_train(self, x: Tensor) -> Tensor:
        return x

    def prepare_eval(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - see Likelihood
        return x

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits = at_least_fp32(parameters)
        return (logits * (x - 0.5) - _log_sinhc_half(logits)).sum(-1)  # (B,), nats

    def total_log_prob_and_gradient(self, parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = at_least_fp32(parameters)
        return self.log_prob(logits, x).sum(), x - self.mean(logits)

    def mean(self, parameters: Tensor) -> Tensor:
        return 0.5 + _mean_shift(at_least_fp32(parameters))

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """By the inverse of the cumulative distribution, written for |logit| so that nothing overflows."""
        logits = at_least_fp32(parameters)
        a = logits.abs().clamp(min=1e-6)
        u = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device, generator=generator)
        upper = (1.0 + torch.log1p((1.0 - u) * torch.expm1(-a)) / a).clamp(0.0, 1.0)
        return torch.where(logits < 0, 1.0 - upper, upper)

    def initial_bias(self, pixels: PixelMoments) -> Tensor:
        """By bisection of `mean`; |logit| at most 50, so means are reproduced between 0.02 and 0.98."""
        low = torch.full_like(pixels.mean, -_MAX_CONTINUOUS_LOGIT, dtype=torch.float64)
        high = -low
        return _solved(self.mean, pixels.mean, low, high)


@dataclass(frozen=True)
class Gaussian:
    """Real pixels, P = 2: the decoder gives D means, then D raw log variances.

    A pixel that never varies would pull its variance to 0 and the density to infinity. So the log variance is
    v = m + softplus(raw - m) with m = -2 ln 255: no standard deviation below one grey level of an 8-bit image
    (the soft clip of Rybkin et al. 2021 with that bound); far above m it is `raw` itself.
    """

    name: str = "gaussian"
    parameters_per_pixel: int = 2
    is_likelihood: bool = True
    levels: int | None = None
    support: tuple[float, float] = (-math.inf, math.inf)

    def prepare_train(self, x: Tensor) -> Tensor:
        return x

    def prepare_eval(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - see Likelihood
        return x

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2 * D) -> mean (B, D) and log variance (B, D)."""
        mean, raw = at_least_fp32(parameters).chunk(2, dim=-1)
        return mean, _MIN_LOG_VAR + nn.functional.softplus(raw - _MIN_LOG_VAR)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        mean, log_var = self.moments(parameters)
        per_pixel = (x - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi)
        return -0.5 * per_pixel.sum(-1)  # (B,), nats

    def total_log_prob_and_gradient(self, parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        parameters = at_least_fp32(parameters)
        mean, log_var = self.moments(parameters)
        deviation = x - mean
        d_mean = deviation * torch.exp(-log_var)
        square = deviation * d_mean
        total = -0.5 * (square + log_var + math.log(2 * math.pi)).sum()
        slope = torch.sigmoid(parameters.chunk(2, dim=-1)[1] - _MIN_LOG_VAR)  # of the soft clip
        return total, torch.cat([d_mean, 0.5 * (square - 1.0) * slope], dim=-1)

    def mean(self, parameters: Tensor) -> Tensor:
        return self.moments(parameters)[0]

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_var = self.moments(parameters)
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + torch.exp(0.5 * log_var) * noise

    def initial_bias(self, pixels: PixelMoments) -> Tensor:
        """Mean and variance of the data, under which it has the entropy of Gaussian noise, whatever its units."""
        return torch.cat([pixels.mean, _unclipped(_initial_variance(pixels).log(), _MIN_LOG_VAR)])


@dataclass(frozen=True)
class DiscretisedLogistic:
    """Grey or colour pixels of 8 bits, P = 2: the decoder gives D locations, then D raw log scales (Salimans et al.
    2017, "PixelCNN++", sec. 2.1, with a single component).

    A level k of 0..255 has the mass of a logistic distribution within half a level of k / 255; black has all that is
    below it and white all that is above. A location is free to lie outside [0, 1]: that is how a pixel becomes surely
    black. The log scale is clipped softly, as the Gaussian's log variance is. Pixels of any other kind are rounded to
    the nearest level.
    """

    name: str = "discretised_logistic"
    parameters_per_pixel: int = 2
    is_likelihood: bool = True
    levels: int | None = 256
    support: tuple[float, float] = (0.0, 1.0)

    def prepare_train(self, x: Tensor) -> Tensor:
        return (x * _WHITE).round_().div_(_WHITE)

    def prepare_eval(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - see Likelihood
        return self.prepare_train(x)

    def location_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2 * D) -> location (B, D) and log scale (B, D), of pixels in [0, 1]."""
        location, raw = at_least_fp32(parameters).chunk(2, dim=-1)
        return location, _MIN_LOG_SCALE + nn.functional.softplus(raw + _RAW_ZERO - _MIN_LOG_SCALE)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        location, log_scale = self.location_and_log_scale(parameters)
        precision = torch.exp(-log_scale)
        lower, upper = (x - _HALF_LEVEL - location) * precision, (x + _HALF_LEVEL - location) * precision
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - e^(l - u)): in this form nothing cancels, however
        # far out in a tail the level is. Black lacks the second and third factor, white the first and third.
        not_black, not_white = x > _HALF_LEVEL, x < 1.0 - _HALF_LEVEL
        per_pixel = (
            nn.functional.logsigmoid(upper) * not_white
            + nn.functional.logsigmoid(-lower) * not_black
            + torch.log(-torch.expm1(-_width(precision))) * (not_black & not_white)
        )
        return per_pixel.sum(-1)  # (B,), nats

    def total_log_prob_and_gradient(self, parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        location, log_scale = self.location_and_log_scale(parameters)
        precision = torch.exp(-log_scale)
        lower, upper = (x - _HALF_LEVEL - location) * precision, (x + _HALF_LEVEL - location) * precision
        width = _width(precision)
        not_black, not_white = (x > _HALF_LEVEL).to(x.dtype), (x < 1.0 - _HALF_LEVEL).to(x.dtype)
        within, lost = not_black * not_white, torch.expm1(-width)
        total = (nn.functional.logsigmoid(upper) * not_white).sum()
        total += (nn.functional.logsigmoid(-lower) * not_black).sum()
        total += (torch.log(-lost) * within).sum()
        above = torch.sigmoid(-upper) * not_white  # of the logarithms, by upper and by -lower
        below = torch.sigmoid(lower) * not_black
        d_location = (below - above) * precision
        d_log_scale = below * lower - above * upper + within * width * (1.0 + lost) / lost
        raw = at_least_fp32(parameters).chunk(2, dim=-1)[1]
        slope = torch.sigmoid(raw + _RAW_ZERO - _MIN_LOG_SCALE)  # of the soft clip
        return total, torch.cat([d_location, d_log_scale * slope], dim=-1)

    def bit_probability(self, parameters: Tensor, prefix: Tensor, bit: int) -> Tensor:
        """The mass of the upper half of 256 / 2^bit levels in that of them all; as in `log_prob` nothing cancels."""
        location, log_scale = self.location_and_log_scale(parameters)
        precision = torch.exp(-log_scale)
        n_levels = 256 >> bit
        first = prefix * n_levels
        lower = ((first - 0.5) / _WHITE - location) * precision
        middle = ((first + (n_levels // 2 - 0.5)) / _WHITE - location) * precision
        above_lower = torch.where(first == 0, 0.0, -nn.functional.logsigmoid(-lower))  # -ln P(level >= first)
        share = torch.exp(above_lower + nn.functional.logsigmoid(-middle))
        width = _width(precision) * n_levels
        within = torch.expm1(-0.5 * width) / torch.expm1(-width)
        # Without levels above there is no upper end; without any below, no lower one.
        within = torch.where(first == 0, -torch.expm1(-0.5 * width), within)
        return share * torch.where(first + n_levels == 256, 1.0, within)

    def mean(self, parameters: Tensor) -> Tensor:
        """The sum over k = 1..255 of P(level >= k), in pixels."""
        location, log_scale = self.location_and_log_scale(parameters)
        precision = torch.exp(-log_scale)
        total = torch.zeros_like(location)
        for k in range(1, int(_WHITE) + 1):  # one by one: all at once would take 255 times the memory
            total += torch.sigmoid((location - (k - 0.5) / _WHITE) * precision)
        return total / _WHITE

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        location, log_scale = self.location_and_log_scale(parameters)
        u = torch.rand(location.shape, dtype=location.dtype, device=location.device, generator=generator)
        drawn = (location + torch.exp(log_scale) * torch.logit(u)).clamp(0.0, 1.0)
        return self.prepare_train(drawn)

    def initial_bias(self, pixels: PixelMoments) -> Tensor:
        """The scale of the data's variance, and the location, by bisection, at which the mean is the data's."""
        scale = _initial_variance(pixels).double().mul(3.0).sqrt() / math.pi
        raw = _unclipped(scale.log(), _MIN_LOG_SCALE) - _RAW_ZERO
        wanted = pixels.mean.double().clamp(*_MEAN_RANGE)
        # Within [0, 1] a mean is at most 7 scales (ln 0.001) and the scale's own size beyond it.
        low = -8.0 * scale - 1.0
        return torch.cat(
            [
                _solved(lambda at: self.mean(torch.cat([at, raw], dim=-1)), wanted, low, 1.0 - low),
                raw,
            ]
        ).to(pixels.mean.dtype)


_LIKELIHOODS: dict[str, Likelihood] = {
    known.name: known
    for known in (
        Bernoulli("cross_entropy", binarisation="none"),
        Bernoulli("bernoulli", binarisation="static"),
        Bernoulli("dynamic_bernoulli", binarisation="dynamic"),
        ContinuousBernoulli(),
        Gaussian(),
        DiscretisedLogistic(),
    )
}


def likelihood(name: str) -> Likelihood:
    """The likelihood of `recipe.likelihood`. Raises UserError, naming those that exist."""
    if name not in _LIKELIHOODS:
        raise UserError(f"No likelihood '{name}'. {did_you_mean(name, _LIKELIHOODS)}")
    return _LIKELIHOODS[name]


def discrete(of: Likelihood) -> Discrete | None:
    """The likelihood as a coder takes it; None for one whose `log_prob` is not the log of a probability."""
    return of if isinstance(of, Bernoulli | DiscretisedLogistic) and of.levels else None


def at_least_fp32(x: Tensor) -> Tensor:
    """bfloat16 as float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def _initial_variance(pixels: PixelMoments) -> Tensor:
    """The variances that output biases start from, (D,)."""
    least = max(
        2.0 * math.exp(_MIN_LOG_VAR),
        min(_MIN_INITIAL_VARIANCE, _MIN_INITIAL_SHARE * float(pixels.variance.mean())),
    )
    return pixels.variance.clamp(min=least)


def _unclipped(value: Tensor, least: float) -> Tensor:
    """The raw numbers whose soft clip, least + softplus(raw - least), is `value` > least."""
    above = value - least
    return least + above + torch.log(-torch.expm1(-above))


def _solved(mean: Callable[[Tensor], Tensor], wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where between low and high, (D,) each, an increasing mean is the one wanted; of the dtype of `wanted`."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = mean(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).to(wanted.dtype)


def _width(precision: Tensor) -> Tensor:
    """A grey level in units of a logistic's scale, kept above 0, whose logarithm would be infinite."""
    return (precision / _WHITE).clamp(min=1e-30)


def _log_sinhc_half(a: Tensor) -> Tensor:
    """ln(sinh(a / 2) / (a / 2)), elementwise: even, 0 at 0, about |a| / 2 - ln |a| far out.

    Its gradient is given, not derived: autograd's, 1/2 + 1 / (e^a - 1) - 1 / a, cancels near 0 and takes
    twice the time. The term added is 0 with the right gradient; torch.compile takes it without a warning,
    unlike torch.autograd.Function. There is no second derivative.
    """
    at = a.detach()
    magnitude = at.abs().clamp(min=1e-6)  # below, the value is 0 to the last digit of a float
    value = 0.5 * magnitude + torch.log(-torch.expm1(-magnitude) / magnitude)
    return value + _mean_shift(at) * (a - at)


def _mean_shift(a: Tensor) -> Tensor:
    """E[x] - 1/2 of the continuous Bernoulli with logit a: coth(a / 2) / 2 - 1 / a; near 0 its series."""
    magnitude = a.abs()
    square = a * a
    near = magnitude * (1 / 12 - square * (1 / 720 - square / 30_240))
    far = magnitude.clamp(min=0.25)  # below it, the two terms would cancel
    return torch.copysign(torch.where(magnitude < 0.25, near, 0.5 / torch.tanh(0.5 * far) - 1.0 / far), a)
