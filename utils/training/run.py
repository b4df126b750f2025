"""The start of both entry points: device, processes, seeds, model, output folder and log."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from timm.utils import ModelEmaV3
from torch import nn
from yacs.config import CfgNode

from logger import RunLog
from lr_scheduler import build_scheduler
from optimizer import build_optimizer, scale_lr
from utils.checkpoints.resume import Start
from utils.checkpoints.state import Best, Position, TrainState
from utils.compilation import compile_parts, require_blocks
from utils.config import stage_of, to_plain
from utils.config.arguments import Command
from utils.device import choose_device, choose_precision, dtype_name, use_device
from utils.files import RunFolder, write_whole
from utils.launch import idle_tasks, is_launched
from utils.processes import heartbeat
from utils.processes.group import (
    mixed_hardware,
    rank,
    start_process_group,
    together,
    world_size,
)
from utils.processes.sharding import shard
from utils.randomness import MODEL_STREAM, seed_all
from utils.training.agreement import facts_of_start
from utils.versions import versions


@dataclass(frozen=True)
class Run:
    """Settings of a run, fixed at its start."""

    cfg: CfgNode
    device: torch.device
    amp_dtype: torch.dtype
    output: RunFolder
    summary: tuple[str, ...] = ()  # of the command line, for the log

    @property
    def folder(self) -> Path:
        """The folder of the run's files."""
        return self.output.path

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per update, at least 1."""
        return max(self.cfg.TRAIN.ACCUMULATION_STEPS, 1)

    @property
    def clip_grad(self) -> float:
        """Largest norm of an update's gradients."""
        return float(self.cfg.TRAIN.CLIP_GRAD or math.inf)

    @property
    def seed(self) -> int:
        """The seed; all random numbers follow from it and the numbers of updates and samples."""
        return int(self.cfg.SEED)

    @property
    def images_per_update(self) -> int:
        """The effective batch size, over all processes."""
        return int(self.cfg.DATA.BATCH_SIZE) * self.accumulation_steps * world_size()


def start_run(command: Command) -> Run:
    """Choose the device, join the process group, seed the random numbers; write no files yet."""
    cfg = command.cfg
    device = set_up_device(cfg)
    amp_dtype = choose_precision(cfg.TRAIN.PRECISION, device)
    start_process_group(device, cfg.TRAIN.LOST_AFTER, facts_of_start(cfg, device))
    heartbeat.start(cfg.TRAIN.LOST_AFTER)
    seed_all(MODEL_STREAM, cfg.SEED)
    mixed = mixed_hardware()
    warning = f"the machines differ, and so may their last digits: {mixed}" if mixed else ""
    summary = (*command.summary, *filter(None, (warning, idle_tasks())))
    return Run(cfg, device, amp_dtype, RunFolder(run_folder(cfg)), summary)


def set_up_device(cfg: CfgNode) -> torch.device:
    """Choose the device and how it computes, before this process has a tensor or a group."""
    device = choose_device(cfg.DEVICE)
    use_device(device, tf32=cfg.TRAIN.TF32, deterministic=cfg.TRAIN.DETERMINISTIC)
    return device


def run_folder(cfg: CfgNode) -> Path:
    """The folder of a run's files: OUTPUT/MODEL.NAME/TAG."""
    return Path(cfg.OUTPUT or "output") / cfg.MODEL.NAME / cfg.TAG


def place_model(run: Run, model: nn.Module) -> nn.Module:
    """Move the model to the device, and divide it over the processes if TRAIN.SHARDING is full.

    The parts that TRAIN.COMPILE names are compiled at their first use.
    """
    sharded = run.cfg.TRAIN.SHARDING == "full"
    if sharded and not is_launched():
        raise ValueError("TRAIN.SHARDING is full, which needs a launcher: start it with torchrun")
    if sharded and run.amp_dtype == torch.float16:
        raise ValueError("TRAIN.SHARDING is full, and TRAIN.PRECISION float16: choose bfloat16")
    if sharded and run.cfg.TRAIN.COMPILE == "model":
        raise ValueError("TRAIN.SHARDING is full, and TRAIN.COMPILE model: choose blocks")
    compile_parts(model, run.cfg.TRAIN.COMPILE, run.device)
    if not sharded:
        return model.to(run.device)
    shard(model, require_blocks(model, "TRAIN.SHARDING full"), run.device)
    return model


def build_state(
    run: Run, model: nn.Module, updates_per_epoch: int, validates: bool = False
) -> TrainState:
    """Build the state that a checkpoint holds: model, optimizer, schedule, loss scaler, position.

    A run that validates also keeps its best accuracy and, with EMA_DECAY, averaged weights.
    """
    cfg, images = run.cfg, run.images_per_update
    optimizer = build_optimizer(cfg, model, scale_lr(cfg.TRAIN.BASE_LR, images))
    scheduler = build_scheduler(
        cfg,
        optimizer,
        updates_per_epoch,
        warmup_lr=scale_lr(cfg.TRAIN.WARMUP_LR, images),
        min_lr=scale_lr(cfg.TRAIN.MIN_LR, images),
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp_dtype == torch.float16)
    position = Position(images, cfg.TRAIN.START_EPOCH)
    state = TrainState(model, optimizer, scheduler, scaler, position)
    if validates:
        state.best = Best()
    if validates and cfg.TRAIN.EMA_DECAY:
        state.average = ModelEmaV3(model, decay=cfg.TRAIN.EMA_DECAY)
    return state


def open_log(run: Run, state: TrainState, start: Start) -> RunLog:
    """Create the run's folder and log, and log what the run starts from."""
    try:
        str(run.folder).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"output folder {run.folder} has a name that is no text in UTF-8, where TensorBoard "
            "cannot write (--output DIR)"
        ) from None
    cfg, notes = run.cfg, start.notes
    config = yaml.safe_dump(to_plain(run.cfg), sort_keys=False)

    def settle() -> None:
        """Create, lock and prepare the folder in the first process."""
        if rank() == 0:
            run.folder.mkdir(parents=True, exist_ok=True)
            run.output.acquire()
            start.settle(run.output)
            path = run.folder / "config.yaml"
            write_whole(path, lambda file: file.write(config.encode()), flush=False)

    together(f"output folder {run.folder} cannot be written (--output DIR)", settle)
    try:
        log = RunLog(
            run.folder, rank(), state.position.update, state.position.epoch, cfg.TRAIN.EPOCHS
        )
    except OSError as error:
        raise ValueError(
            f"output folder {run.folder} cannot be written: {error.strerror} (--output DIR)"
        ) from None
    log.detail("configuration:\n%s", config)
    _describe(run, state.model, log)
    if not (state.position.update or state.position.epoch or cfg.PRETRAINED):
        log.info("it starts from fresh weights")
    for damage in start.damaged.values():
        log.warning("%s", damage)
    for note in filter(None, notes):
        log.info("%s", note)
    return log


def _describe(run: Run, model: nn.Module, log: RunLog) -> None:
    """Log model, recipe, data, device, batch size, learning rate and folder."""
    cfg = run.cfg
    log.detail("%s", versions())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    kind = f"{stage_of(cfg) or 'training'} of {cfg.MODEL.TYPE}"
    log.info("%s: %d parameters", kind, num_parameters)
    for line in run.summary:
        log.info("%s", line)
    data = f"{cfg.DATA.DATASET} {cfg.DATA.DATA_PATH}".rstrip()
    log.info("data %s, images of %s pixels", data, cfg.DATA.IMG_SIZE)
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    log.info(
        "%d process(es), this one on %s (%s), %s",
        world_size(),
        run.device,
        name,
        dtype_name(run.amp_dtype),
    )
    lr = scale_lr(cfg.TRAIN.BASE_LR, run.images_per_update)
    log.info(
        "effective batch size %d (%d per process x %d process(es) x %d micro-batch(es)); "
        "base lr %g -> actual lr %g",
        run.images_per_update,
        cfg.DATA.BATCH_SIZE,
        world_size(),
        run.accumulation_steps,
        cfg.TRAIN.BASE_LR,
        lr,
    )
    log.info("files go to %s, the whole configuration to its config.yaml", run.folder)


def is_due(epoch: int, every: int, epochs: int) -> bool:
    """Whether `epoch` is a multiple of `every` or the last; never where `every` is 0."""
    return every > 0 and (epoch % every == 0 or epoch == epochs - 1)
