"""The epochs of a run: reporting, saving and stopping around the updates of the engine's loop."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from logger import Record, RunLog
from utils.checkpoints.names import starts_in
from utils.checkpoints.saving import BrokenWeightsError, Saver
from utils.checkpoints.state import TrainState
from utils.processes import heartbeat, signals
from utils.processes.agreement import parted_replicas
from utils.processes.consensus import Consensus
from utils.processes.group import distribute, mixed_hardware, rank, world_size
from utils.processes.sharding import is_sharded
from utils.training.divergence import write_bundle
from utils.training.engine import Loop
from utils.training.losses import ComputeLoss
from utils.training.metrics import DivergenceError, TrainingMetrics
from utils.training.run import Run


class Training:
    """A run in training: report, save, and stop at signals; call its methods in all processes.

    `loop` is the argument of `train_one_epoch`. `count_unreadable` returns how many training
    pictures could not be read so far.
    """

    def __init__(
        self,
        run: Run,
        log: RunLog,
        state: TrainState,
        loader: DataLoader[list[Tensor]],
        compute_loss: ComputeLoss,
        count_unreadable: Callable[[], int],
        classes: Sequence[str] = (),
    ) -> None:
        cfg = run.cfg
        self.run, self.log, self.state, self.classes = run, log, state, classes
        self.dataset: Any = loader.dataset
        self.sampler: Any = loader.sampler
        self.count_unreadable = count_unreadable
        model = distribute(state.model, run.device)
        self.saver = Saver(run.output, state, cfg, log.info, log.warning, classes)
        self.consensus = Consensus(self._requests)
        self.metrics = TrainingMetrics(
            run.device,
            run.images_per_update,
            cfg.TRAIN.MAX_SKIPPED,
            scales=state.scaler.is_enabled(),
            report_every=cfg.PRINT_FREQ,
        )
        self.metrics.load(state.figures, rank())
        self.compared = state.position.update  # the last update at which replicas were equal
        self.loop = Loop(
            run,
            state,
            model,
            loader,
            compute_loss,
            self.metrics,
            report_every=cfg.PRINT_FREQ,
            report=self.report,
            progress=log.progress,
            after_update=self.after_update,
        )

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Enclose the remaining updates of the present epoch.

        `PreemptedError` where a signal ends the run.
        """
        position = self.state.position
        signals.begin(self._goes_on)
        heartbeat.step()
        self.sampler.set_position(position.epoch, position.images)
        if position.images:
            self.metrics.restart_clock()
        else:
            self.metrics.start_epoch()
        left = len(self.loop.loader) * self.run.cfg.DATA.BATCH_SIZE * world_size()
        share = left / max(left + position.images, 1)
        with self.log.epoch(position.epoch, share or 1.0), self._bundled():
            yield

    def report(self, record: Record) -> None:
        """Log the figures of an update; ValueError where the folder is no longer this run's."""
        self.run.output.require_own()
        self.log.report(record | {"broken_pictures": self.count_unreadable()})

    def after_update(self) -> None:
        """Save where it is due, and save and stop where a signal reached any process."""
        number, late = self._agreed()
        every = self.run.cfg.SAVE_UPDATES
        if number or late or (every and self.state.position.update % every == 0):
            self._save_inside()
        if number:
            self._stop(number)
        self.consensus.ask()

    def between_batches(self) -> None:
        """Save and stop during a validation where a signal asks for it.

        Call it equally often in all processes. The resumed run repeats the validation.
        """
        number, _ = self._agreed()
        if number:
            self._save_inside()
            self._stop(number)
        self.consensus.ask()

    def close_before_validation(self) -> None:
        """Save a trained epoch, of which a resumed run repeats the validation, and close."""
        self._save_inside()
        self.close()

    def complete_epoch(self, save: bool, best: bool = False) -> None:
        """Count an epoch as complete after its validation, and save where that is due."""
        position = self.state.position
        self._compare_replicas()
        with self._bundled():
            self.metrics.require_finite()
            position.complete_epoch()
            self.state.figures = self.metrics.state()
            self.saver.save_epoch(position.epoch - 1, save, best)

    def _compare_replicas(self) -> None:
        """ValueError in all processes where the weights of some differ, before they are saved."""
        before, self.compared = self.compared, self.state.position.update
        if is_sharded(self.state.model):
            return  # every weight exists once
        parted = parted_replicas(self.state.model.parameters())
        if parted and not mixed_hardware():
            raise ValueError(
                f"the weights of {parted} processes are no longer those of rank 0: they have "
                f"parted between update {before} and update {self.compared}, and are not saved; "
                "test the machines' memory and devices, and start the same command again"
            )
        if parted:
            self.log.warning(
                "the weights of %s processes differ from those of rank 0, as expected of "
                "different devices (%s)",
                parted,
                mixed_hardware(),
            )

    def close(self) -> None:
        """Wait until everything is written, and unlock the folder."""
        self.saver.wait()
        self.log.close()
        self.run.output.release()

    @contextlib.contextmanager
    def _bundled(self) -> Iterator[None]:
        """Where the run diverges, write its bundle; ValueError names the command to replay it."""
        try:
            yield
        except (DivergenceError, BrokenWeightsError) as error:
            update = error.update if isinstance(error, DivergenceError) else None
            place = self.metrics.place_of(update)
            name_of = self.dataset.pictures.name
            path = write_bundle(
                self.run, self.state, place, self.sampler.order_of, name_of, self.classes
            )
            hint = f"to see it again: python -m tools.replay {path}" if path else "no bundle"
            raise ValueError(f"{error}; {hint}") from None

    def _requests(self) -> tuple[int, bool, bool]:
        """This process's requests: stop by a signal, save, raise the error of a failed save."""
        return signals.requested(), self.saver.is_late(), self.saver.has_failed()

    def _agreed(self) -> tuple[int, bool]:
        """The signal that asks to stop (or 0), and whether to save: equal in all processes."""
        number, late, failed = self.consensus.decide()
        if failed:
            self.saver.wait()  # raises the error of the failed save
        return number, bool(late)

    def _save_inside(self) -> None:
        self.metrics.require_finite()
        self.state.figures = self.metrics.state()
        self.saver.save_inside()

    def _stop(self, number: int) -> None:
        """Wait until the state is written, and end the run."""
        self.close()
        signals.finish()
        update, name = self.state.position.update, signal.Signals(number).name
        line = f"stopped after update {update} by {name}: {self._goes_on()}"
        raise signals.PreemptedError(line, number)

    def _goes_on(self) -> str:
        """Words for what the run resumes from when started again."""
        cfg, newest = self.run.cfg, next(iter(starts_in(self.run.folder)), None)
        if newest is None:
            return "nothing is saved yet: the same command begins again"
        if not cfg.TRAIN.AUTO_RESUME:
            return f"go on with --resume {newest} (TRAIN.AUTO_RESUME is off)"
        return f"the same command goes on from {newest}"
