"""Find a model's weights in a file of any program: their section, and a prefix of their names."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from utils.checkpoints.reading import Weights, without_recomputed
from utils.messages import prefix_before, short

# Names of sections in files of this project, of timm, torchvision, Lightning, DeepSpeed and others.
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_TRAINED = ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights")
_OWN = ("model_ema", "model")  # of this project; no other section beside them counts
_MOST_LEVELS = 3  # of sections in each other
# What torch.compile, FSDP and activation checkpointing insert into names of parameters.
_INSERTED = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
MAY_LACK = ("head.", "fc_norm.")  # parameters of a classifier that not every file holds
_COUNTER = "n_averaged"  # of updates, in torch.optim.swa_utils.AveragedModel


def find_weights(content: object, source: object, known: Collection[str]) -> tuple[Weights, str]:
    """The weights of a file that fit a model with parameters of the names `known` best.

    They lie in a section (averaged weights win) or alone, and a prefix that all names share is
    removed; return words for the log that say so, "" where a file is as this project writes it. The
    caller compares names and shapes. ValueError where there are no weights, and where two sections
    could be meant.
    """
    section, stored = _section(content, source, known)
    stored = without_recomputed(stored)
    if _COUNTER not in known:
        stored.pop(_COUNTER, None)
    prefix, _ = prefix_before(stored, known)
    shared = _common(_common(*stored) if stored else "", prefix)
    weights = {_INSERTED.sub("", name.removeprefix(shared)): stored[name] for name in stored}
    if len(weights) < len(stored):
        raise ValueError(f"checkpoint {source} holds a parameter under two names")
    notes = [f"from its section {section}"] * (section not in ("", *_OWN))
    notes += [f"without the prefix {_quoted(shared)}"] * bool(shared)
    inserted = {found for name in stored for found in _INSERTED.findall(name.removeprefix(shared))}
    notes += [f"without {_quoted(text)} in its names" for text in sorted(inserted)]
    return weights, ", ".join(notes)


def _section(
    content: object, source: object, known: Collection[str]
) -> tuple[str, Mapping[str, Tensor]]:
    """The section with the weights, and its name."""
    top = content if isinstance(content, Mapping) else {}
    own = next((name for name in _OWN if isinstance(top.get(name), Mapping)), "")
    found = dict(_sections(top[own] if own else content, own))
    if not found:
        sections = [short(str(name)) for name, value in top.items() if isinstance(value, Mapping)]
        among = f", among its sections {', '.join(sections[:8])}" if sections else ""
        raise ValueError(f"checkpoint {source} holds no weights under a usual name{among}")
    averaged = [name for name in found if not set(_AVERAGED).isdisjoint(name.split("."))]
    for names in (averaged, [name for name in found if name not in averaged]):
        fitting = [name for name in names if _fits(found[name], known)]
        if len(fitting) > 1:
            raise ValueError(
                f"checkpoint {source} holds weights for this model in its sections "
                f"{' and '.join(map(short, fitting[:3]))}: save the ones that are meant alone"
            )
        if fitting:
            return fitting[0], found[fitting[0]]
    return next(iter(found.items()))  # the comparison with the model says what does not fit


def _sections(
    value: object, path: str, level: int = 0
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """All usual sections that hold nothing but tensors, with their names, such as "model.net"."""
    if not isinstance(value, Mapping) or not value or level > _MOST_LEVELS:
        return
    if all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items()):
        yield path, value
        return
    for name in (*_AVERAGED, *_TRAINED):
        if name in value:
            yield from _sections(value[name], f"{path}.{name}".lstrip("."), level + 1)


def _fits(weights: Mapping[str, Tensor], known: Collection[str]) -> bool:
    return 2 * prefix_before(weights, known)[1] > len(known)


def _common(*names: str) -> str:
    """The parts, each with its dot, with which all names begin."""
    # Text between the first and the last in order begins as these two do.
    pairs = zip(min(names).split(".")[:-1], max(names).split(".")[:-1], strict=False)
    return "".join(
        f"{one}." for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    )


def _quoted(text: str) -> str:
    return f'"{short(text)}"'
