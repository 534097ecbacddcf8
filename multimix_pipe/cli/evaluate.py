"""multimix-pipe evaluate: accuracy, calibration and robustness of a checkpoint, as JSON and pictures."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimix_pipe.cli.arguments import add_backend, add_quiet, add_shards, data_options
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, check_int, check_number
from multimix_pipe.errors import ConfigError, counted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from multimix_pipe.loader import Loader

logger = logging.getLogger("multimix_pipe")

ALL = "all"
STATE_KEYS = ("model", "state_dict", "model_state_dict", "net")
"""Keys under which checkpoints keep the model's state."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before names."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure accuracy, calibration and robustness of a checkpoint",
        description="Evaluate a trained model: accuracy, NLL, Brier score and calibration errors, before and after temperature "
        "scaling, also on corrupted and attacked images. Writes report.json, reliability.png and, with --corruptions or "
        "--published, corruptions.png. The checkpoint is loaded with weights_only=True, which runs no code from it; --model does "
        "run code: the function that builds your network.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file of torch.save: a state_dict, or a dict with one")
    add_shards(parser)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODULE:FUNCTION",
        help="what builds the network, e.g. torchvision.models:resnet50 or train:make_net, found from the current folder too; it "
        "is called with num_classes= if it takes that",
    )
    add("--out", metavar="FOLDER", default="evaluation", help="where to write the results; default: %(default)s")
    add(
        "--calibration",
        metavar="SHARDS",
        nargs="+",
        help="held-out shards to fit the temperature on; default: no scaling",
    )
    add("--num-classes", type=int, help="number of the model's classes; default: the shards' number")
    add("--corruptions", nargs="+", default=[], metavar="NAME", help='names of corruptions, or "all"; default: none')
    add("--severities", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N", help="of 1 .. 5; default: all")
    add("--published", metavar="FOLDER", help="corrupted images in the layout of ImageNet-C or CIFAR-10-C")
    add("--fgsm", nargs="+", type=float, default=[], metavar="EPS", help="attack by FGSM, eps in units of 1/255")
    add("--pgd", nargs="+", type=float, default=[], metavar="EPS", help="attack by PGD of 10 steps of eps/4, likewise")
    add("--size", type=int, default=224, metavar="PIXELS", help="image size; default: %(default)s")
    add("--resize", type=int, metavar="PIXELS", help="shorter side before the centre crop; default: 256/224 of --size")
    add("--mean", type=float, nargs=3, default=IMAGENET_MEAN, help="of the normalisation; default: ImageNet's")
    add("--std", type=float, nargs=3, default=IMAGENET_STD, help="of the normalisation; default: ImageNet's")
    add("--batch-size", type=int, default=256, help="images per step; default: %(default)s")
    add("--device", default="auto", help="cpu, cuda, ...; default: the GPU if there is one")
    add_backend(parser, "what decodes")
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the main figures and write the results."""
    from multimix_pipe.cli.classes import class_names
    from multimix_pipe.shards.index import open_index
    from multimix_pipe.training.evaluation import CORRUPTIONS, FGSM, PGD, evaluate
    from multimix_pipe.training.evaluation.corruptions import check_corruptions

    corruptions = list(CORRUPTIONS) if args.corruptions == [ALL] else args.corruptions
    check_corruptions(corruptions)
    for severity in args.severities:
        check_int("--severities", severity, 1, 5)
    for eps in (*args.fgsm, *args.pgd):
        check_number("--fgsm and --pgd, in units of 1/255,", eps, 0, 255)
    out = _made_folder(Path(args.out))
    data = data_options(args)
    if data["label"] is None:
        raise ConfigError("--label must name labels to compare with; found none")
    if data["multilabel"]:
        raise ConfigError(
            "evaluate measures models of one label per sample; found --multilabel. Measure the average precision of each class "
            "as docs/guides/multilabel.md does"
        )
    index = open_index(args.source, progress=not args.quiet, **data)
    names = class_names(index)
    num_classes = len(names) if args.num_classes is None else args.num_classes
    check_int("--num-classes", num_classes, int(index.label.max(initial=0)) + 1)
    model = build_model(args.model, num_classes)
    trained_on = load_weights(model, Path(args.checkpoint), args.model)
    loader = _open(args, args.source, num_classes, data)
    _compare_images(trained_on, args)
    if data["classes"] is None:
        data["classes"] = index.classes  # the calibration set must number its classes alike
    held_out = None if args.calibration is None else _open(args, args.calibration, num_classes, data)
    report = evaluate(
        model.to(loader.device),
        loader,
        calibration=held_out,
        corruptions=corruptions,
        severities=args.severities,
        attacks=[
            *(FGSM(eps / 255) for eps in args.fgsm),
            *(PGD(eps / 255, step=eps / 255 / 4, steps=10) for eps in args.pgd),
        ],
        published=args.published,
        classes=names if args.published and not names[0].isdigit() else None,
        progress=not args.quiet,
    )
    for opened in (loader, held_out):
        if opened is not None:
            opened.close()
    if report["classes"] != num_classes:
        raise ConfigError(
            f"the model must have {num_classes} outputs, one for each class; found {report['classes']}. Pass --num-classes if "
            "the model knows more classes than the shards"
        )
    written = _write(out, {"command": args.command_line, "checkpoint": args.checkpoint, "model": args.model, **report})
    print(_summary(report))
    print(f"wrote {', '.join(written)} in {out}")
    return 0


def _open(args: argparse.Namespace, source: list[str], num_classes: int, data: dict[str, Any]) -> Loader:
    from multimix_pipe.loader import open_loader

    return open_loader(
        source,
        batch_size=args.batch_size,
        num_classes=num_classes,
        transform=EvalTransform(size=args.size, resize=args.resize, mean=tuple(args.mean), std=tuple(args.std)),
        backend=args.backend,
        device=args.device,
        rank=0,
        world_size=1,
        **data,
    )


def build_model(name: str, num_classes: int) -> nn.Module:
    """Call the function "module:function", with num_classes= if it takes that, and return the network that it builds."""
    from torch import nn

    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"--model must be MODULE:FUNCTION, e.g. torchvision.models:resnet50; found {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        build: Callable[..., Any] = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--model must be a function that can be imported; found {name!r}: {error}") from error
    try:
        parameters = inspect.signature(build).parameters
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        model = build(num_classes=num_classes) if any_name or "num_classes" in parameters else build()
    except TypeError as error:
        raise ConfigError(f"--model must work as {function}(num_classes=N) or {function}(); found: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model must return a torch.nn.Module; found {type(model).__name__}")
    return model


def _compare_images(trained_on: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Warn if the training images had another size or normalisation."""
    here = {"size": [args.size, args.size], "mean": [*args.mean], "std": [*args.std]}
    differing = [name for name, value in here.items() if trained_on.get(name, value) != value]
    if differing:
        there, used = (", ".join(f"--{name} {values[name]}" for name in differing) for values in (trained_on, here))
        logger.warning("the checkpoint's loader trained with %s; this evaluates with %s", there, used)


def load_weights(model: nn.Module, path: Path, name: str) -> Mapping[str, Any]:
    """Load the state_dict in `path` into `model`, all of it. Return the transform of a loader's state beside it, or {}.

    Raises:
        ConfigError: there is no such file or no state_dict in it, or it belongs to another architecture or number of classes.
    """
    loaded = _loaded(path)
    state = _state_in(loaded, path)
    own = model.state_dict()
    for prefix in (*WRAPPERS, *WRAPPERS):
        if state and all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        shown = [f"no {key}" for key in missing[:2]] + [f"a {key}" for key in unknown[:2]]
        raise ConfigError(
            f"{path}: must hold the {len(own)} tensors of {name}; {counted(len(missing), 'tensor')} missing and {len(unknown)} "
            f"unknown: {', '.join(shown)}"
        )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            raise ConfigError(
                f"{path}: {key} must have the shape {tuple(tensor.shape)} that it has in {name}; found "
                f"{tuple(state[key].shape)}. For another number of classes pass --num-classes"
            )
    model.load_state_dict(state)
    loader = loaded.get("loader")
    transform = loader.get("transform") if isinstance(loader, Mapping) else None
    return transform if isinstance(transform, Mapping) else {}


def _loaded(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"the checkpoint must be a file of torch.save; found no {str(path)!r}") from error
    except Exception as error:  # on broken bytes torch.load raises nearly anything, also errors of pickle
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: must be a file of torch.save that loads with weights_only=True; {reason}"
        ) from error


def _state_in(loaded: Any, path: Path) -> Mapping[str, Tensor]:
    import torch

    for key in STATE_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(value, torch.Tensor) for value in loaded.values())
    ):
        found = list(loaded)[:5] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ConfigError(f"{path}: must hold a state_dict, by itself or under {', '.join(STATE_KEYS)}; found {found}")
    return loaded


def _made_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out must be a folder that can be written; found {str(path)!r}: {error}") from error
    return path


def _write(out: Path, report: dict[str, Any]) -> list[str]:
    """Write the report, and pictures if matplotlib is installed; return the files' names."""
    from multimix_pipe.cli.evaluation_charts import draw_corruptions, draw_reliability

    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    written = ["report.json"]
    try:
        draw_reliability(report, out / "reliability.png")
        written.append("reliability.png")
        if "corruptions" in report or "published" in report:
            draw_corruptions(report, out / "corruptions.png")
            written.append("corruptions.png")
    except ImportError:
        print("no pictures: they need matplotlib, pip install multimix-pipe[plot]", file=sys.stderr)
    return written


def _summary(report: dict[str, Any]) -> str:
    """Return a table of the main figures: a line for the clean images, and one for each corruption and attack."""
    lines = [f"{counted(report['samples'], 'sample')}, {counted(report['classes'], 'class')}"]
    temperature = report["temperature"]
    lines[0] += "" if temperature is None else f", temperature {temperature:.3f}"
    columns = ("top1", "top5", "nll", "brier", "ece", "adaptive_ece", "signed_gap")
    lines.append(f"{'':24}" + "".join(f"{column:>13}" for column in columns))

    def line(name: str, found: dict[str, float]) -> str:
        return f"{name:24}" + "".join(f"{found[column]:13.4f}" for column in columns)

    for form in ("raw", "scaled"):
        if report["clean"][form] is not None:
            lines.append(line("clean" if form == "raw" else "clean, scaled", report["clean"][form]))
    for kind in ("corruptions", "published"):
        for name, severities in report.get(kind, {}).items():
            mean = {
                column: sum(part["raw"][column] for part in severities.values()) / len(severities) for column in columns
            }
            lines.append(line(name, mean))
    lines += [line(name, found["raw"]) for name, found in report.get("attacks", {}).items()]
    return "\n".join(lines)
