"""What single methods promise beyond the contract."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.errors import ConfigError, RankError, UnknownNameError
from rankfold.factor.moments import Moments, output_energy
from rankfold.methods import Method
from rankfold.methods.ttm import even_factors
from rankfold.records import LayerInfo, Ranks
from rankfold.testing import LayerCase
from rankfold.testing.accuracy import measured_error
from rankfold.testing.subject import Subject, relative_error, sample_ranks


def subject(layer: type[nn.Module], shape: tuple[int, ...], **options: object) -> Subject:
    return Subject.of(LayerCase(id="one", kind=layer, options=options, input_shape=shape, dtype=torch.float64))


def conv() -> Subject:
    return subject(nn.Conv2d, (2, 6, 9, 8), in_channels=6, out_channels=8, kernel_size=3, padding=1)


def linear() -> Subject:
    return subject(nn.Linear, (4, 12), in_features=12, out_features=10)


def random_spd(n: int, *, seed: int, groups: int = 1) -> Tensor:
    """Return symmetric matrices ``(groups, n, n)`` with eigenvalues over three decades."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(groups, n, n, generator=generator, dtype=torch.float64)).Q
    return (basis * torch.logspace(0, -3, n, dtype=torch.float64)) @ basis.mT


def random_moments(info: LayerInfo, *, seed: int = 0, patch: bool = True) -> Moments:
    """Return full, correlated moments over three decades."""
    n, k, groups = info.group_in, info.kernel_numel, info.groups
    whole = random_spd(n * k, seed=seed, groups=groups)
    channel = whole.reshape(groups, n, k, n, k).diagonal(dim1=2, dim2=4).mean(-1)
    return Moments(channel=channel, patch=whole if patch and k > 1 else None, count=100)


def errors(method: Method, case: Subject, ranks: Ranks, moments: Moments | None) -> tuple[float, float]:
    """Return the predicted and the achieved error, the latter in the metric of the moments."""
    prepared = methods.prepare(method, case.weight, case.info, moments)
    module = case.built(method, ranks, prepared.factorize(ranks))
    return prepared.error(ranks), measured_error(module.weight, case, moments)


EXACT = [("svd", None), ("qr", None), ("spatial_svd", None), ("tucker", {"iterations": 0})]


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize(("name", "options"), EXACT)
def test_some_predictions_are_exact(name: str, options: dict[str, int] | None, moments: bool) -> None:
    case = linear() if name == "qr" else conv()
    data = random_moments(case.info, patch=False) if moments else None
    for ranks in sample_ranks(methods.get(name, options), case.info, count=4):
        predicted, achieved = errors(methods.get(name, options), case, ranks, data)
        assert achieved == pytest.approx(predicted, abs=1e-6)


@pytest.mark.parametrize("name", ["svd", "tucker"])
def test_predictions_on_patches_are_exact(name: str) -> None:
    case = conv()
    for ranks in sample_ranks(methods.get(name), case.info, count=6):
        predicted, achieved = errors(methods.get(name), case, ranks, random_moments(case.info))
        assert achieved == pytest.approx(predicted, abs=1e-4)  # tucker adds a millionth of the mean moment


@pytest.mark.parametrize("name", methods.registry.names())
def test_moments_help_on_the_data(name: str) -> None:
    """On correlated inputs less of the output is lost with moments than without, at equal ranks."""
    method = methods.get(name, {"iterations": 5} if name.endswith("cp") else None)  # later it is all but exact
    gains: list[float] = []
    for seed in range(6):
        case = linear() if name in ("qr", "ttm") else conv()
        moments = Moments(channel=random_spd(case.info.group_in, seed=seed), patch=None, count=100)
        (ranks,) = sample_ranks(method, case.info, count=1)
        dense = methods.to_canonical(case.weight, case.info)
        blind = case.factored(method, ranks).weight
        aware = case.factored(method, ranks, moments=moments).weight
        differences = [methods.to_canonical(w.detach(), case.info) - dense for w in (blind, aware)]
        lost = [float(output_energy(difference, moments)) for difference in differences]
        gains.append(lost[0] / lost[1])
    assert statistics.geometric_mean(gains) > 1.05  # measured: 1.08 (ttm) to 16 (spatial_svd)
    # ttm sees the moment only through its marginals; cp and filterwise_cp end in local optima.
    assert min(gains) > 1.0 or name in ("ttm", "cp", "filterwise_cp")


@pytest.mark.parametrize("name", ["svd", "qr", "spatial_svd", "tucker", "tt3", "tt"])
def test_ill_conditioned_data_leaves_factors_well_conditioned(name: str) -> None:
    """Un-whitening by a root of condition 1000 must not reach the factors: they would hardly train."""
    method = methods.get(name)
    case = linear() if name == "qr" else conv()
    n = case.info.group_in
    moments = Moments(channel=torch.logspace(0, -6, n, dtype=torch.float64).diag()[None], patch=None, count=n)
    (ranks,) = sample_ranks(method, case.info, count=1)
    plain = methods.prepare(method, case.weight, case.info).factorize(ranks)
    aware = methods.prepare(method, case.weight, case.info, moments).factorize(ranks)

    def condition(factor: Tensor) -> float:
        matrix = factor.flatten(0, -2) if factor.ndim == 2 else factor[0].flatten(1)
        values = torch.linalg.svdvals(matrix)
        return float(values[0] / values[-1])

    for before, after in zip(plain, aware, strict=True):
        assert condition(after) < 30 * condition(before)


@pytest.mark.parametrize("name", methods.registry.names())
def test_norms_are_shared_among_factors_of_scaled_weights(name: str) -> None:
    case = linear() if name in ("qr", "ttm") else conv()
    method = methods.get(name)
    ranks = sample_ranks(method, case.info, count=1)[0]
    one = methods.prepare(method, case.weight, case.info).factorize(ranks)
    scaled = methods.prepare(method, case.weight * 2.0**40, case.info).factorize(ranks)
    for a, b in zip(one, scaled, strict=True):
        assert float(b.norm() / a.norm()) == pytest.approx(2.0 ** (40 / len(one)), rel=1e-6)


def test_tt3_is_between_hosvd_and_hooi() -> None:
    case = conv()
    for ranks in ((2, 2), (4, 3), (6, 5)):
        hosvd = errors(methods.get("tucker", {"iterations": 0}), case, ranks, None)[1]
        hooi = errors(methods.get("tucker", {"iterations": 100, "tolerance": 0.0}), case, ranks, None)[1]
        assert hooi - 1e-9 <= errors(methods.get("tt3"), case, ranks, None)[1] <= hosvd + 1e-9


def test_spatial_svd_is_the_best_separable_pair() -> None:
    """A planted pair of a vertical and a horizontal convolution is found exactly."""
    case = conv()
    generator = torch.Generator().manual_seed(3)
    vertical = torch.randn(2, 6, 3, 1, generator=generator, dtype=torch.float64)
    horizontal = torch.randn(8, 2, 1, 3, generator=generator, dtype=torch.float64)
    case.set_weight(torch.einsum("rikx,oryl->oikl", vertical, horizontal))
    predicted, achieved = errors(methods.get("spatial_svd"), case, (2,), None)
    assert predicted < 1e-6
    assert achieved < 1e-9
    assert errors(methods.get("spatial_svd"), case, (1,), None)[1] > 1e-2


@pytest.mark.parametrize("name", methods.registry.names())
def test_searches_take_less_accurate_factors_of_large_weights_only(name: str) -> None:
    method = methods.get(name)
    large = subject(nn.Conv2d, (1, 128, 4, 4), in_channels=128, out_channels=128, kernel_size=3)
    assert method.quick(conv().info) == method
    assert (method.quick(large.info) == method) is not method.iterative
    ranks = tuple(min(rank, 4) for rank in method.max_ranks(large.info))
    assert method.quick(large.info).blueprint(large.info, ranks) == method.blueprint(large.info, ranks)


def test_filters_are_decomposed_one_by_one() -> None:
    """Filters that are each of rank one, all different, are exact at R = 1; one CP of all of them is not."""
    case = conv()
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (6, 3, 3)]
    case.set_weight(torch.einsum("oi,ok,ol->oikl", *parts))
    assert errors(methods.get("filterwise_cp"), case, (1,), None)[1] < 1e-9
    assert errors(methods.get("cp"), case, (1,), None)[1] > 1e-2


def test_ttm_with_shapes_by_hand() -> None:
    case = linear()
    method = methods.get("ttm", {"cores": 2, "out_shape": (2, 5), "in_shape": (3, 4)})
    assert method.max_ranks(case.info) == (6,)
    generator = torch.Generator().manual_seed(5)
    left, right = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((2, 3), (5, 4)))
    case.set_weight(torch.kron(left, right))
    assert errors(method, case, (1,), None)[1] < 1e-9
    swapped = methods.get("ttm", {"cores": 2, "out_shape": (5, 2), "in_shape": (4, 3)})
    assert errors(swapped, case, (1,), None)[1] > 1e-2
    three = methods.get("ttm", {"cores": 3})
    with torch.no_grad():
        actual = case.factored(three, three.max_ranks(case.info))(case.input)
    assert relative_error(actual, case.exact_output()) < 1e-10


def test_ttm_moments_of_independent_modes_are_exact() -> None:
    """Where the second moment is a Kronecker product the prediction is that of the output."""
    case = linear()
    method = methods.get("ttm", {"cores": 2, "out_shape": (5, 2), "in_shape": (4, 3)})
    parts = [random_moments(subject(nn.Linear, (1, n), in_features=n, out_features=2).info).channel[0] for n in (4, 3)]
    moments = Moments(channel=torch.kron(*parts)[None], patch=None, count=1)
    for rank in range(1, 7):
        predicted, achieved = errors(method, case, (rank,), moments)
        assert achieved == pytest.approx(predicted, abs=1e-6)


def test_even_factors_multiply_and_are_as_even_as_can_be() -> None:
    for n, count in itertools.product(range(1, 130), (2, 3)):
        found = even_factors(n, count)
        product = 1
        for factor in found:
            product *= factor
        assert product == n
        assert list(found) == sorted(found, reverse=True)
        divisors = [d for d in range(1, n + 1) if n % d == 0]
        every = [c for c in itertools.product(divisors, repeat=count) if torch.tensor(c).prod() == n] if n < 30 else []
        assert all(found[0] <= max(c) for c in every)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("tucker", {"iterations": -1}, ConfigError, "iterations"),
        ("tucker", {"iteratons": 1}, UnknownNameError, "iterations"),
        ("cp", {"tolerance": -1.0}, ConfigError, "tolerance"),
        ("ttm", {"cores": 1}, ConfigError, "cores"),
        ("ttm", {"out_shape": (2, 2, 2)}, ConfigError, "out_shape"),
        ("svdd", {}, UnknownNameError, "svd"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        methods.get(name, options)


def test_ttm_shapes_that_do_not_fit_name_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"out_shape.*block\.layer.*10"):
        methods.get("ttm", {"out_shape": (3, 3)}).max_ranks(linear().info)


@pytest.mark.parametrize("ranks", [(2.0,), (True,), ("2",), (None,)])
def test_ranks_that_are_no_integers_are_refused(ranks: tuple[object, ...]) -> None:
    with pytest.raises(RankError, match="integers"):
        methods.check_ranks(methods.get("svd"), linear().info, ranks)  # type: ignore[arg-type]
