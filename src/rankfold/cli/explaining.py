"""``rankfold gradcam``."""

from __future__ import annotations

import rankfold as rf
from rankfold._options import COUNT, Flag
from rankfold.api.options import reconstruction
from rankfold.batches import iterate, split_batch
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_data, open_work
from rankfold.cli._options import OUTPUT, REQUIRED
from rankfold.cli._parsing import search_options
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import check_file, save_document
from rankfold.errors import ConfigError
from rankfold.evaluation.heat_maps import feature_layer, grad_cam
from rankfold.records import Budget


@command(
    'rankfold gradcam lenet5_mnist5k --weights bundled --data mnist5k --at "params<=50%" --out maps.html',
    "model", "out", "at", "images", "layer", "search", "source",
    out=Flag(
        kind=list[str] | None, names=("--out", "-o"), metavar="FILE", panel=OUTPUT,
        help="File ending in .html, .json or .md; may be repeated.",
    ),
    at=Flag(
        kind=list[str], default=REQUIRED, metavar="BOUND",
        help="Budget of one compressed network, such as params<=25%; may be repeated.",
    ),
    images=Flag(kind=int, default=6, check=COUNT, metavar="N", help="Number of test images."),
    layer=Flag(
        kind=str | None, metavar="NAME",
        help="Convolution, or block, whose feature map is weighted. By default the last convolution.",
    ),
)  # fmt: skip
def gradcam(given: Given, out: Output) -> None:
    """Compress a network to several budgets, and compare where each looks: Grad-CAM heat maps side by side.

    The page shows each test image with the map of the original and of every compressed network, with their cosine
    similarity. Requires the package grad-cam: pip install "rankfold[cam]".
    """
    source = given_source(given, given.model)
    search = search_options(given)
    how = reconstruction(search["reconstruct"], has_data=True, data_aware=search["data_aware"])
    budgets = [Budget.parse(text) for text in given.at]
    files = [check_file(path, (".html", ".json", ".md")) for path in given.out or ()]
    if source.data is None:
        raise ConfigError("gradcam needs test images. Pass --data, such as mnist5k or cifar10:PATH.")
    grad_cam()
    work = open_work(source, given)
    batch, _ = split_batch(next(iter(iterate(open_data(source, "test", limit=given.images), "test"))))
    images = batch[: given.images]
    layer = feature_layer(work.dense, images, given.layer)
    planned = rf.sweep(work.dense, work.example, points=budgets, calibration=work.calibration, **search)
    models = {}
    for point in planned.points:
        if point.plan is None:
            raise rf.RankfoldError(f"budget {point.budget!r} has no plan: {point.reason}")
        models[point.budget] = rf.apply(work.dense, point.plan, work.calibration, reconstruct=how.mode)
    maps = rf.gradcam(work.dense, models, images, layer=layer, name=given.model)
    out.show(maps.print)
    written = save_document(maps, files, out)
    out.document({"command": "gradcam", "files": written, "gradcam": maps.to_dict()})
