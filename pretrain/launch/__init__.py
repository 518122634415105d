"""How the processes of a job start, watch one another and end together.

In: the options, and the environment of srun or torchrun. Out: connected ranks on checked devices, a claimed
run folder, one exit code. Open in this order: processes, preflight, roll_call, run_folder;
then stop (a rank is asked to stop, or is silent for too long), watchdog (a rank hangs, crashes or has bad
input), agreement (how all end alike). examine, plan and memory tell without a device what a job will need,
stage by stage.

A run stops at its last step (Schedule.last_step), when the ranks agree that one was asked to (stop), when
something cannot be written (monitor/save_errors), when it diverges (monitor/step_reporter), or when the
watchdog ends it.
"""
