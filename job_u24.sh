#!/bin/bash
#SBATCH --nodes 2 --ntasks-per-node 1 --time 0:02:00
#SBATCH --requeue --open-mode append --signal USR1@80
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
srun python main_simmim.py --cfg configs/demo/simmim_pretrain__swin_tiny__shapes64.yaml --batch-size 8 --output /tmp/u24/slurm/out --tag t${SLURM_ARRAY_TASK_ID:-x} --opts TRAIN.EPOCHS 12 DATA.NUM_SHAPES 1600 PRINT_FREQ 20 SEED ${SLURM_ARRAY_TASK_ID:-0}
status=$?
echo "status $status"
if [ $status = 75 ]; then scontrol requeue $job; fi
exit $status
