"""The epochs of a run: where they go on, when they save, when they stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from logger import RunLog
from utils.checkpoints.names import starts_in
from utils.checkpoints.saving import BrokenWeightsError, Saver
from utils.processes import heartbeat, signals
from utils.processes.consensus import Agreement
from utils.processes.group import distribute, rank
from utils.training.divergence import Places, write_bundle
from utils.training.losses import ComputeLoss
from utils.training.metrics import DivergenceError
from utils.training.run import Run, build_metrics, train_updates
from utils.training.unreadable import BrokenPictures


@dataclass
class Training:
    """What trains, on what, and whom it tells; `parts` are what a checkpoint holds."""

    run: Run
    log: RunLog
    parts: dict[str, Any]
    loader: DataLoader[Any]
    compute_loss: ComputeLoss
    _: KW_ONLY
    change_averages: Callable[[], None] = lambda: None
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        run, progress = self.run, self.parts["progress"]
        self.model = distribute(self.parts["model"], run.device)
        self.saver = Saver(
            *(run.output, self.parts, run.cfg, self.log.info, self.log.warning, self.classes)
        )
        self.agreement = Agreement(self._wishes)
        dataset: Any = self.loader.dataset
        self.broken = BrokenPictures(
            dataset.pictures, run.cfg.DATA.MAX_BROKEN, run.folder, self.log.warning, run.device
        )
        # A divergence is found at most so many updates late.
        self.places = Places(run.cfg.TRAIN.MAX_SKIPPED + run.cfg.PRINT_FREQ + 1)
        self.metrics = build_metrics(run, self.parts)
        if progress.figures:
            self.metrics.load(progress.figures, rank())

    def train_epoch(self, epoch: int) -> None:
        """Train what is left of an epoch; `PreemptedError` where a signal ends the run."""
        signals.begin(self._goes_on)
        heartbeat.step()
        progress = self.parts["progress"]
        sampler: Any = self.loader.sampler
        sampler.set_position(epoch, progress.images)
        if progress.images:
            self.metrics.go_on()
        else:
            self.metrics.start_epoch()
        with self.log.epoch(epoch), self._bundled():
            train_updates(
                *(self.run, self.parts, self.model, self.loader, self._compute_loss, self.metrics),
                after_update=self._after_update,
                first_index=progress.images // self.run.images_per_update,
                report_every=self.run.cfg.PRINT_FREQ,
                report=self._report,
                progress=self.log.progress,
            )

    def complete_epoch(self, save: bool, best: bool = False) -> None:
        """Count an epoch as done, with its validation, and save it where that is due."""
        progress = self.parts["progress"]
        with self._bundled():
            self.metrics.require_finite()
            progress.complete_epoch()
            progress.figures = self.metrics.state()
            self.saver.save_epoch(progress.epoch - 1, save, best)

    def close(self) -> None:
        """Wait until everything is written, and leave the folder to others."""
        self.saver.wait()
        self.log.close()
        self.run.output.release()

    @contextlib.contextmanager
    def _bundled(self) -> Iterator[None]:
        """Leave what shows a divergence, and say how to look at it."""
        try:
            yield
        except (DivergenceError, BrokenWeightsError) as error:
            update = error.update if isinstance(error, DivergenceError) else None
            path = write_bundle(self.run, self.parts, self.loader, self.places, update)
            hint = f"to see it again: python -m tools.replay {path}" if path else "no bundle"
            raise ValueError(f"{error}; {hint}") from None

    def _report(self, record: dict[str, Any]) -> None:
        self.run.output.require_own()
        self.log.report(record | {"broken_pictures": self.broken.count()})

    def _compute_loss(self, model: nn.Module, batch: Any) -> Tensor:
        heartbeat.step()  # whoever is not here when the others are, waits for data
        progress = self.parts["progress"]
        update = self.parts["lr_scheduler"].num_steps
        self.places.note(update, progress.epoch, progress.images)
        return self.compute_loss(model, batch)

    def _after_update(self) -> None:
        heartbeat.step()
        self.change_averages()
        self.parts["progress"].images += self.run.images_per_update
        number, late = self._agreed()
        every = self.run.cfg.SAVE_UPDATES
        if number or late or (every and self.parts["lr_scheduler"].num_steps % every == 0):
            self._save_inside()
        if number:
            self._stop(number)
        self.agreement.ask()

    def between_batches(self) -> None:
        """Stop a validation, whose epoch is trained, where a signal asks for it.

        Call it in all processes equally often: a run that goes on does the validation.
        """
        number, _ = self._agreed()
        if number:
            self._save_inside()
            self._stop(number)
        self.agreement.ask()

    def _wishes(self) -> tuple[int, bool, bool]:
        return signals.requested(), self.saver.is_late(), self.saver.has_failed()

    def _agreed(self) -> tuple[int, bool]:
        """The signal that asks to stop, or 0, and whether a save is due, the same everywhere."""
        number, late, failed = self.agreement.decide()
        if failed:
            self.saver.wait()  # which raises why
        return number, bool(late)

    def _save_inside(self) -> None:
        self.metrics.require_finite()
        self.parts["progress"].figures = self.metrics.state()
        self.saver.save_inside()

    def _stop(self, number: int) -> None:
        """Wait until the state is written, and end the run."""
        self.close()
        signals.finish()
        update, name = self.parts["lr_scheduler"].num_steps, signal.Signals(number).name
        line = f"stopped after update {update} by {name}: {self._goes_on()}"
        raise signals.PreemptedError(line, number)

    def _goes_on(self) -> str:
        """What a run that is started again goes on from."""
        cfg, newest = self.run.cfg, next(iter(starts_in(self.run.folder)), None)
        if newest is None:
            return "nothing is saved yet: the same command begins again"
        if not cfg.TRAIN.AUTO_RESUME:
            return f"go on with --resume {newest} (TRAIN.AUTO_RESUME is off)"
        return f"the same command goes on from {newest}"
